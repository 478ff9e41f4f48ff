# SPDX-License-Identifier: BSD-3-Clause
"""The record that all readers produce, and checks of the fields of annotation files."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from . import json_files
from .image_root import PathLike
from .json_files import JsonLines, read_json_outline
from .samples import Sample, Skipped, check_texts


Record = Mapping[str, Any]

CAPTION_FIELDS = ("caption", "captions", "text")


@dataclass(frozen=True)
class ImageRecord:
    """An image with its captions, in the common form of all formats."""

    sample_id: str  # `<file>/<key>`, unique in the source
    key: int | str  # row number or name in the file
    image: bytes | str  # encoded, or the full path
    captions: list[str]
    image_id: int | str | None = None
    path: str | None = None  # as in the source

    def samples(self) -> Iterator[Sample | Skipped]:
        """The CapFilt sample of this record, and skipped texts."""
        own_id = (self.path or self.sample_id) if self.image_id is None else self.image_id
        return check_texts(self.sample_id, self.image, self.captions, str(own_id))


RecordStream = Iterator[ImageRecord | Skipped]


class CaptionGroup(TypedDict):
    """An image with all of its captions and the id from its source."""

    image: Any
    captions: list[str]
    image_id: int | str


def read_json(path: Path, *, is_lines: bool | None = None) -> Any:
    """Content of a JSON file, or the list of its lines (by default for `.jsonl`)."""
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"{path} {state}. Pass the path of a JSON file (.json, .jsonl).")
    is_lines = path.suffix == ".jsonl" if is_lines is None else is_lines
    try:
        text = path.read_text(encoding="utf-8-sig")
        if is_lines:
            # `splitlines` would also split at characters of texts, such as U+2028.
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be parsed ({error}). Expected JSON in UTF-8: in a .json file one value, such as a list of"
            " records; in a .jsonl file one record a line."
        ) from error


def read_large_json(path: Path, *, is_lines: bool | None = None) -> Any:
    """Same as [`read_json`], with lists of large files as `JsonArray` or `JsonLines`, which stream their records."""
    if not path.is_file() or path.stat().st_size <= json_files.MAX_BYTES_IN_MEMORY:
        return read_json(path, is_lines=is_lines)
    if is_lines or (is_lines is None and path.suffix == ".jsonl"):
        return JsonLines(path) if any(True for _ in JsonLines(path)) else []
    return read_json_outline(path)


def first_character(path: Path) -> str:
    """The first character of a file that is not white space, or an empty string. Distinguishes JSON lists from objects."""
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        while (character := file.read(1)).isspace():
            pass
    return character


def check_record(record: Any, where: str, field: str) -> Record:
    """Returns the record, or raises `ValueError` if it is not an object. `field` is named in the message."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} is a {type(record).__name__}, expected an object with {field!r}.")
    return record


def read_text(record: Record, field: str, where: str) -> str:
    """Returns a text field, which may be empty."""
    text = record.get(field)
    if not isinstance(text, str):
        raise field_error(record, field, where, "str")
    return text


def read_path(record: Record, field: str, where: str) -> str:
    """Returns the path of an image."""
    path = record.get(field)
    if not isinstance(path, str) or not path:
        raise field_error(record, field, where, "the path of an image")
    return path


def read_captions(record: Record, where: str, *, required: bool = True) -> list[str]:
    """Returns the captions of a record, from the first of `CAPTION_FIELDS` that it has."""
    field = next((field for field in CAPTION_FIELDS if field in record), CAPTION_FIELDS[0])
    value = record.get(field)
    captions = [value] if isinstance(value, str) else value
    if not required and not captions:
        return []
    if not isinstance(captions, list) or not captions or not all(isinstance(caption, str) for caption in captions):
        raise field_error(record, field, where, "str or list of str")
    return captions


def read_id(record: Record, field: str, where: str) -> int | str:
    """Returns an id."""
    value = record.get(field)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise field_error(record, field, where, "int or str")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(
            f"{where}: field {field!r} is {str(value)[:8]}... ({len(str(value))} characters), expected an integer of 64 bits or a text. Correct or remove this record."
        )
    return value


def read_optional_id(record: Record, field: str, where: str) -> int | str | None:
    """Returns an id, or `None` if it is missing or empty."""
    return None if record.get(field) in (None, "") else read_id(record, field, where)


def field_error(record: Record, field: str, where: str, expected: str) -> ValueError:
    """The error for an invalid field."""
    if field not in record:
        got = f"missing (there are: {', '.join(map(str, record)) or 'none'})"
    else:
        value = record[field]
        got = f"{value!r}" if value in ("", [], None) else type(value).__name__
        if isinstance(value, list) and value:
            got += " of " + ", ".join(sorted({type(item).__name__ for item in value}))
    return ValueError(f"{where}: field {field!r} is {got}, expected {expected}. Correct or remove this record.")


__all__ = [
    "CAPTION_FIELDS",
    "CaptionGroup",
    "ImageRecord",
    "PathLike",
    "Record",
    "RecordStream",
    "check_record",
    "field_error",
    "first_character",
    "read_captions",
    "read_id",
    "read_json",
    "read_large_json",
    "read_optional_id",
    "read_path",
    "read_text",
]
