# SPDX-License-Identifier: BSD-3-Clause
"""Shards of JSON lists and image folders, which are read once and cut, and of drawn scenes."""

import csv
import json
import os
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from ..data.annotations import SHAPES, read_metadata_row, standard_records
from ..data.records import Record, check_record, read_captions, read_json, read_optional_id, read_path
from ..data.scenes import Scenes
from ..data.sources import METADATA_FILES
from .streams import Fault, Shard, Stream, check_texts


def list_shards(path: Path, name: str, image_root: str | os.PathLike[str] | None, shard_size: int) -> list[Shard]:
    """Cuts a list of records into shards, between pictures.

    Args:
        path (`Path`):
            A JSON list, an annotation file of COCO or Karpathy, or the metadata of an image folder.
        name (`str`):
            What the list is called.
        image_root (`str` or `Path`, *optional*):
            Folder that relative picture paths start from. Defaults to that of the list.
        shard_size (`int`):
            Records of a shard; more where those of one picture go on.

    Returns:
        `list[Shard]`: named after the list and numbered.

    Raises:
        ValueError: If the file cannot be parsed or holds no list.
    """
    image_field = "file_name" if path.name in METADATA_FILES else "image"
    records = _read_records(path)
    cuts = _cuts([_picture_of(record, image_field) for record in records], shard_size)
    root = path.parent if image_root is None else image_root
    return [
        Shard(f"{name}-{number:05d}", partial(_stream, records[start:stop], start, name, image_field, root))
        for number, (start, stop) in enumerate(cuts)
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


def _read_records(path: Path) -> Sequence[Any]:
    if path.suffix == ".csv":
        return _read_rows(path)
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as lines:
            return [_parse_line(line) for line in lines if line.strip()]
    content = read_json(path)
    if isinstance(content, dict):
        return standard_records(content, str(path), split="train")
    if not isinstance(content, list):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a list of records, or {SHAPES}.")
    return content


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


def _parse_line(line: str) -> Any:
    """A record, or why there is none, which is a fault when its turn comes."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return error


def _picture_of(record: Any, image_field: str) -> Any:
    """What neighbours of the same picture have in common, whether or not the record is sound."""
    if not isinstance(record, dict):
        return None
    values = (record.get("image_id"), record.get(image_field))
    return tuple(value if isinstance(value, (int, str)) else None for value in values)


def _cuts(pictures: Sequence[Any], shard_size: int) -> list[tuple[int, int]]:
    starts = [0]
    for row in range(shard_size, len(pictures)):
        if row - starts[-1] >= shard_size and pictures[row] != pictures[row - 1]:
            starts.append(row)
    return list(zip(starts, [*starts[1:], len(pictures)], strict=True))


def _stream(
    records: Sequence[Record], first_row: int, name: str, image_field: str, root: str | os.PathLike[str]
) -> Stream:
    for row, record in enumerate(records, first_row):
        sample_id = f"{name}/{row:08d}"
        if isinstance(record, Exception):
            yield Fault(sample_id, "bad_record", str(record))
            continue
        try:
            check_record(record, sample_id, image_field)
            path = read_path(record, image_field, sample_id)
            captions = read_captions(record, sample_id)
            image_id = read_optional_id(record, "image_id", sample_id)
        except ValueError as error:
            yield Fault(sample_id, "bad_record", str(error))
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
