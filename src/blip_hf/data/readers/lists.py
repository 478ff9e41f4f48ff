# SPDX-License-Identifier: BSD-3-Clause
"""Shards of JSON lists and image folders, which are cut after so many records, and of drawn scenes."""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

from ..scenes import Scenes
from .annotations import SHAPES, read_metadata_row, standard_records
from .json_lists import iterate_json_lines, iterate_json_list
from .pairs import METADATA_FILES
from .records import check_record, first_character, read_captions, read_json, read_optional_id, read_path
from .samples import Shard, Skipped, Stream, check_texts


# Records, or why there is none, each with where it starts, from where it can be read again; from `None`, all.
Reader = Callable[[int | None], Iterator[tuple[int, Any]]]


def list_shards(path: Path, name: str, image_root: str | os.PathLike[str] | None, shard_size: int) -> list[Shard]:
    """Cuts a list of records into shards, between images.

    Args:
        path (`Path`):
            A JSON list, an annotation file of COCO or Karpathy, or the metadata of an image folder.
        name (`str`):
            What the list is called.
        image_root (`str` or `Path`, *optional*):
            Folder that relative image paths start from. Defaults to that of the list.
        shard_size (`int`):
            Records of a shard; more where those of one image go on.

    Returns:
        `list[Shard]`: named after the list and numbered.

    Raises:
        ValueError: If the file cannot be parsed or holds no list.
    """
    image_field = "file_name" if path.name in METADATA_FILES else "image"
    read = _reader_of(path)
    root = path.parent if image_root is None else image_root
    return [
        Shard(f"{name}-{number:05d}", partial(_stream, read, *cut, name, image_field, root))
        for number, cut in enumerate(_cuts(read, image_field, shard_size))
    ]


def scene_shards(scenes: Scenes, shard_size: int) -> list[Shard]:
    """Cuts a stretch of scenes into shards.

    Args:
        scenes (`Scenes`):
            The scenes.
        shard_size (`int`):
            Scenes of a shard.

    Returns:
        `list[Shard]`: `scenes-00000` and so on.
    """
    return [
        Shard(f"scenes-{number:05d}", partial(_stream_scenes, scenes, start, min(start + shard_size, len(scenes))))
        for number, start in enumerate(range(0, len(scenes), shard_size))
    ]


def _reader_of(path: Path) -> Reader:
    if path.suffix == ".jsonl":
        return partial(iterate_json_lines, path)
    if path.suffix != ".csv" and first_character(path) == "[":
        return partial(iterate_json_list, path)
    return partial(_iterate_sequence, _read_rows(path) if path.suffix == ".csv" else _read_annotations(path))


def _iterate_sequence(records: Sequence[Any], start: int | None) -> Iterator[tuple[int, Any]]:
    return ((row, records[row]) for row in range(start or 0, len(records)))


def _read_annotations(path: Path) -> Sequence[Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a list of records, or {SHAPES}.")
    return standard_records(content, str(path), split="train")


def _read_rows(path: Path) -> list[Any]:
    records: list[Any] = []
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.DictReader(file)
        while True:
            try:
                records.append(read_metadata_row(next(rows), f"{path}, record {len(records)}"))
            except StopIteration:
                return records
            except (ValueError, csv.Error) as error:
                records.append(error)


def _image_of(record: Any, image_field: str) -> Any:
    """What neighbours of the same image have in common, whether or not the record is sound."""
    if not isinstance(record, dict):
        return None
    values = (record.get("image_id"), record.get(image_field))
    return tuple(value if isinstance(value, (int, str)) else None for value in values)


def _cuts(read: Reader, image_field: str, shard_size: int) -> list[tuple[int | None, int, int]]:
    """Where each shard starts, its first row, and the row behind its last."""
    starts: list[tuple[int | None, int]] = [(None, 0)]
    image_key, num_rows = None, 0
    for row, (offset, record) in enumerate(read(None)):
        previous, image_key = image_key, _image_of(record, image_field)
        if row - starts[-1][1] >= shard_size and image_key != previous:
            starts.append((offset, row))
        num_rows = row + 1
    stops = [*(row for _, row in starts[1:]), num_rows]
    return [(offset, row, stop) for (offset, row), stop in zip(starts, stops, strict=True)]


def _stream(
    read: Reader,
    offset: int | None,
    first_row: int,
    stop: int,
    name: str,
    image_field: str,
    root: str | os.PathLike[str],
) -> Stream:
    records = (record for _, record in islice(read(offset), stop - first_row))
    for row, record in enumerate(records, first_row):
        sample_id = f"{name}/{row:08d}"
        if isinstance(record, Exception):
            yield Skipped(sample_id, "bad_record", str(record))
            continue
        try:
            check_record(record, sample_id, image_field)
            path = read_path(record, image_field, sample_id)
            captions = read_captions(record, sample_id)
            image_id = read_optional_id(record, "image_id", sample_id)
        except ValueError as error:
            yield Skipped(sample_id, "bad_record", str(error))
            continue
        image = os.path.join(root, path)
        yield from check_texts(sample_id, image, captions, path if image_id is None else str(image_id))


def _stream_scenes(scenes: Scenes, start: int, stop: int) -> Stream:
    for i in range(start, stop):
        scene = scenes[i]
        encoded = BytesIO()
        scene["image"].save(encoded, "PNG")
        index = scene["image_id"]
        yield from check_texts(f"scenes/{index:08d}", encoded.getvalue(), [scene["caption"]], str(index))


__all__ = ["list_shards", "scene_shards"]
