# SPDX-License-Identifier: BSD-3-Clause
"""Lists of records with image paths: JSON lists and lines, COCO, Karpathy, and the metadata of image folders."""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from . import json_files
from .coco import coco_records
from .image_root import ImageRoot
from .json_files import JsonArray, JsonLines, iterate_json_lines, iterate_json_list, read_json_outline
from .karpathy import karpathy_records
from .large_coco import large_coco_records
from .records import (
    ImageRecord,
    Record,
    RecordStream,
    check_record,
    first_character,
    read_captions,
    read_json,
    read_optional_id,
    read_path,
)
from .samples import Shard, Skipped, Stream
from .usable import skipped_record


# Yields rows, each with the offset to start from to read it again. `None` starts at the first one.
RowReader = Callable[[int | None], Iterator[tuple[int, Any]]]

METADATA_FILES = ("metadata.jsonl", "metadata.csv")
SHAPES = (
    "a list of records with 'image' and 'caption', or COCO's {\"images\": [...], \"annotations\": [...]} or Karpathy's"
    ' {"images": [{"sentences": [...]}]}'
)


@dataclass(frozen=True)
class ListFile:
    """A list file. Relative image paths start from `root`."""

    path: Path
    name: str
    root: ImageRoot
    split: str = "train"
    needs_captions: bool = True

    def records(self) -> RecordStream:
        """Records and skipped ones, in order."""
        for row, raw in enumerate(self._read_all()):
            yield self._parse_or_skip(raw, row, f"{self.path}, record {row}")

    def shards(self, shard_size: int) -> list[Shard]:
        """Shards of `shard_size` records, or more to keep the records of one image together."""
        rows = self._row_reader()
        return [
            Shard(f"{self.name}-{number:05d}", partial(self._stream, rows, *cut), partial(int, cut[2] - cut[1]))
            for number, cut in enumerate(_cuts(rows, self._image_field, shard_size))
        ]

    @property
    def _image_field(self) -> str:
        return "file_name" if self.path.name in METADATA_FILES else "image"

    def _read_all(self) -> Iterable[Any]:
        if self.path.suffix == ".csv":
            return _read_csv(self.path, errors="strict")
        if self.path.suffix == ".jsonl":
            return JsonLines(self.path)
        start = first_character(self.path)
        if start == "[":
            return (raw for _, raw in iterate_json_list(self.path))
        if start == "{" and self.path.stat().st_size > json_files.MAX_BYTES_IN_MEMORY:
            return self._read_object(read_json_outline(self.path))
        content = read_json(self.path)
        if isinstance(content, dict):
            return self._read_object(content)
        if not isinstance(content, list):
            raise ValueError(f"{self.path} contains a {type(content).__name__}, expected {SHAPES}.")
        return content

    def _row_reader(self) -> RowReader:
        """Streams a list of any size. Annotation objects and CSV are parsed at once."""
        if self.path.suffix == ".jsonl":
            return partial(iterate_json_lines, self.path)
        if self.path.suffix == ".csv":
            return partial(_iterate_sequence, list(_read_csv(self.path, errors="replace")))
        if first_character(self.path) == "[":
            return partial(iterate_json_list, self.path)
        return partial(_iterate_sequence, list(self._read_all()))

    def _read_object(self, content: Record) -> Iterable[Record]:
        name = str(self.path)
        if "images" not in content:
            fields = ", ".join(map(repr, content)) or "nothing"
            raise ValueError(f"{name} contains an object with {fields}, expected {SHAPES}.")
        if "annotations" in content or not (self.needs_captions or _has_sentences(content["images"])):
            read = large_coco_records if isinstance(content["images"], JsonArray) else coco_records
            return read(content, name, needs_captions=self.needs_captions)
        return karpathy_records(content, name, self.split)

    def _parse_or_skip(self, raw: Any, row: int, where: str) -> ImageRecord | Skipped:
        try:
            if isinstance(raw, Exception):
                raise ValueError(str(raw))
            return self._parse(raw, row, where)
        except ValueError as error:
            return skipped_record(f"{self.name}/{row:08d}", error)

    def _parse(self, raw: Any, row: int, where: str) -> ImageRecord:
        check_record(raw, where, self._image_field)
        path = read_path(raw, self._image_field, where)
        return ImageRecord(
            sample_id=f"{self.name}/{row:08d}",
            key=row,
            image=self.root.join(path, where),
            captions=read_captions(raw, where, required=self.needs_captions),
            image_id=read_optional_id(raw, "image_id", where),
            path=path,
        )

    def _stream(self, rows: RowReader, start: int | None, first_row: int, stop: int) -> Stream:
        for row, (_, raw) in enumerate(islice(rows(start), stop - first_row), first_row):
            item = self._parse_or_skip(raw, row, where=f"{self.name}/{row:08d}")
            yield from [item] if isinstance(item, Skipped) else item.samples()


def _has_sentences(images: Any) -> bool:
    """Whether the first record of `images` is Karpathy's."""
    if isinstance(images, JsonArray):
        return _has_sentences([images.first])
    return bool(images) and isinstance(images, list) and isinstance(images[0], dict) and "sentences" in images[0]


def _read_csv(path: Path, errors: str) -> Iterator[Any]:
    """Rows of a `metadata.csv`, or the exception of one that cannot be read. An `image_id` of digits is a number."""
    with path.open(encoding="utf-8-sig", errors=errors, newline="") as file:
        rows = csv.DictReader(file)
        number = 0
        while True:
            try:
                yield _read_csv_row(next(rows), f"{path}, record {number}")
            except StopIteration:
                return
            except (ValueError, csv.Error) as error:
                yield error
            number += 1


def _read_csv_row(row: dict[str | None, Any], where: str) -> Record:
    if None in row:
        raise ValueError(
            f"{where} has {len(row[None])} more fields than the header. Put captions with commas in double quotes:"
            ' "a dog, running".'
        )
    if "image_id" not in row:
        return row
    image_id = row["image_id"]
    return {**row, "image_id": int(image_id) if image_id and image_id.isdecimal() else image_id or None}


def _iterate_sequence(rows: Sequence[Any], start: int | None) -> Iterator[tuple[int, Any]]:
    return ((row, rows[row]) for row in range(start or 0, len(rows)))


def _cuts(rows: RowReader, image_field: str, shard_size: int) -> list[tuple[int | None, int, int]]:
    """Offset, first row and stop row of each shard."""
    starts: list[tuple[int | None, int]] = [(None, 0)]
    image_key, num_rows = None, 0
    for row, (offset, raw) in enumerate(rows(None)):
        previous, image_key = image_key, _image_key(raw, image_field)
        if row - starts[-1][1] >= shard_size and image_key != previous:
            starts.append((offset, row))
        num_rows = row + 1
    stops = [*(row for _, row in starts[1:]), num_rows]
    return [(offset, row, stop) for (offset, row), stop in zip(starts, stops, strict=True)]


def _image_key(raw: Any, image_field: str) -> Any:
    """Equal for records of the same image; also accepts invalid records."""
    if not isinstance(raw, dict):
        return None
    values = (raw.get("image_id"), raw.get(image_field))
    return tuple(value if isinstance(value, (int, str)) else None for value in values)


__all__ = ["METADATA_FILES", "SHAPES", "ListFile"]
