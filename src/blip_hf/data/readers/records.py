# SPDX-License-Identifier: BSD-3-Clause
"""Records as they lie in annotation files: parsing them, reading their fields, and naming what does not fit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict


Record = Mapping[str, Any]

CAPTION_FIELDS = ("caption", "captions", "text")


class CaptionGroup(TypedDict):
    """An image with all of its captions, under its source's own id."""

    image: Any
    captions: list[str]
    image_id: int | str


def read_json(path: Path, *, is_lines: bool | None = None) -> Any:
    """Content of a JSON file; JSON lines are a list, without those that are empty.

    Args:
        path (`Path`):
            The file.
        is_lines (`bool`, *optional*):
            Whether each line is a record of its own. By default that of a `.jsonl` file is.

    Returns:
        Anything: what the file holds.

    Raises:
        ValueError: If there is no such file, or it cannot be parsed.
    """
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"{path} {state}. Pass the path of a JSON file (.json, .jsonl).")
    is_lines = path.suffix == ".jsonl" if is_lines is None else is_lines
    try:
        text = path.read_text(encoding="utf-8-sig")
        if is_lines:
            # Not `splitlines`: texts may hold what it takes for the end of a line, such as U+2028.
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be parsed ({error}). Expected is JSON in UTF-8 in a .json file, such as a list of records, and one"
            " record a line in a .jsonl file."
        ) from error


def first_character(path: Path) -> str:
    """The first character of a file that is no white space, which tells a JSON list from an object or from JSON lines.

    Args:
        path (`Path`):
            The file.

    Returns:
        `str`: the character, empty where there is none or no such file.
    """
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        while (character := file.read(1)).isspace():
            pass
    return character


def check_record(record: Any, where: str, field: str) -> Record:
    """The record, if it is an object.

    Args:
        record (anything):
            What stands in the place of a record.
        where (`str`):
            File and number, for the message.
        field (`str`):
            A field that it should have, for the message.

    Returns:
        `Mapping[str, Any]`: the same.

    Raises:
        ValueError: If it is something else.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} is a {type(record).__name__}, expected an object with {field!r}.")
    return record


def read_text(record: Record, field: str, where: str) -> str:
    """A field that holds text, which may be empty.

    Args:
        record (`Mapping[str, Any]`):
            The record.
        field (`str`):
            Name of the field.
        where (`str`):
            File and number of the record, for the message.

    Returns:
        `str`: the text.

    Raises:
        ValueError: If the field is missing or holds anything else.
    """
    text = record.get(field)
    if not isinstance(text, str):
        raise field_error(record, field, where, "str")
    return text


def read_path(record: Record, field: str, where: str) -> str:
    """A field that holds the path of an image, as `read_text`."""
    path = record.get(field)
    if not isinstance(path, str) or not path:
        raise field_error(record, field, where, "the path of an image")
    return path


def read_captions(record: Record, where: str) -> list[str]:
    """The captions of a record, one or several, under whichever of `CAPTION_FIELDS` it has, as `read_text`."""
    field = next((field for field in CAPTION_FIELDS if field in record), CAPTION_FIELDS[0])
    value = record.get(field)
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not captions or not all(isinstance(caption, str) for caption in captions):
        raise field_error(record, field, where, "str or list of str")
    return captions


def read_id(record: Record, field: str, where: str) -> int | str:
    """A field that holds an id, as `read_text`."""
    value = record.get(field)
    if not isinstance(value, (int, str)):
        raise field_error(record, field, where, "int or str")
    return value


def read_optional_id(record: Record, field: str, where: str) -> int | str | None:
    """As `read_id`, but `None` where the field is missing or empty."""
    return None if record.get(field) in (None, "") else read_id(record, field, where)


def field_error(record: Record, field: str, where: str, expected: str) -> ValueError:
    """The error of a field that does not fit: what is there, what is expected, what to do.

    Args:
        record (`Mapping[str, Any]`):
            The record.
        field (`str`):
            Name of the field.
        where (`str`):
            File and number of the record.
        expected (`str`):
            What should be there.

    Returns:
        `ValueError`: to be raised.
    """
    if field not in record:
        got = f"missing (there are: {', '.join(map(str, record)) or 'none'})"
    else:
        value = record[field]
        got = f"{value!r}" if value in ("", [], None) else type(value).__name__
        if isinstance(value, list) and value:
            got += " of " + ", ".join(sorted({type(item).__name__ for item in value}))
    return ValueError(f"{where}: field {field!r} is {got}, expected {expected}. Correct or leave out this record.")


__all__ = [
    "CAPTION_FIELDS",
    "CaptionGroup",
    "Record",
    "check_record",
    "field_error",
    "first_character",
    "read_captions",
    "read_id",
    "read_json",
    "read_optional_id",
    "read_path",
    "read_text",
]
