# SPDX-License-Identifier: BSD-3-Clause
"""Shards of Parquet files, which are read a few rows at a time."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .records import CAPTION_FIELDS, field_error, read_captions, read_optional_id
from .samples import Shard, Skipped, Stream, check_texts


ROWS_PER_READ = 64
BUFFER_BYTES = 2**20  # of a column

# What Arrow raises for bytes that make no sense.
_BROKEN = (pa.ArrowException, UnicodeDecodeError, OSError)


def parquet_shards(path: Path, name: str, image_root: str | os.PathLike[str] | None) -> list[Shard]:
    """The one shard that a Parquet file is.

    Args:
        path (`Path`):
            The file, with the columns `image` and one of `caption`, `captions` and `text`.
        name (`str`):
            What it is called.
        image_root (`str` or `Path`, *optional*):
            Folder that relative image paths start from. Defaults to that of the file.

    Returns:
        `list[Shard]`: one shard. Reading it raises `ValueError` if a column is missing.
    """
    return [Shard(name, partial(_stream, path, name, path.parent if image_root is None else image_root))]


def _stream(path: Path, name: str, root: str | os.PathLike[str]) -> Stream:
    try:
        # Otherwise all of a group is read at once.
        file = pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)
        columns = _columns(file.schema_arrow.names, path)
    except _BROKEN as error:
        yield Skipped(name, "bad_record", f"{path} is no Parquet file: {_detail(error)}")
        return
    with file:
        row = 0
        for group in range(file.num_row_groups):
            next_group = row + file.metadata.row_group(group).num_rows
            try:
                for record in _records(file, group, columns):
                    yield from _sample(record, name, row, root)
                    row += 1
            except _BROKEN as error:
                yield Skipped(f"{name}/{row:08d}", "bad_record", f"rows {row} to {next_group - 1}: {_detail(error)}")
            row = next_group


def _detail(error: Exception) -> str:
    """What is wrong with the content; what is wrong with the disk is raised, as another attempt may do better."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return str(error).strip()


def _columns(present: list[str], path: Path) -> list[str]:
    if "image" not in present or not set(CAPTION_FIELDS) & set(present):
        raise ValueError(
            f"{path} has the columns {', '.join(present)}, expected 'image' and one of"
            f" {', '.join(map(repr, CAPTION_FIELDS))}. Rename them."
        )
    return [column for column in ("image", *CAPTION_FIELDS, "id", "image_id") if column in present]


def _records(file: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(ROWS_PER_READ, row_groups=[group], columns=columns):
        yield from batch.to_pylist()


def _sample(record: dict[str, Any], name: str, row: int, root: str | os.PathLike[str]) -> Stream:
    sample_id = f"{name}/{row:08d}"
    try:
        own_id = read_optional_id(record, "id", sample_id)
        sample_id = sample_id if own_id is None else f"{name}/{own_id}"
        image = _read_image(record, sample_id, root)
        captions = read_captions(record, sample_id)
        image_id = read_optional_id(record, "image_id", sample_id)
    except ValueError as error:
        yield Skipped(sample_id, "bad_record", str(error))
        return
    yield from check_texts(sample_id, image, captions, sample_id if image_id is None else str(image_id))


def _read_image(record: dict[str, Any], sample_id: str, root: str | os.PathLike[str]) -> bytes | str:
    value = record["image"]
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value:
        return os.path.join(root, value)
    raise field_error(record, "image", sample_id, "encoded bytes, a path, or a struct of bytes and path")


__all__ = ["parquet_shards"]
