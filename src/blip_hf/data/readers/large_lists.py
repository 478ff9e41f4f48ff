# SPDX-License-Identifier: BSD-3-Clause
"""Lists that are too large for Python objects: read record by record into an Arrow file, which is memory-mapped.

Gives the same table as `pairs.py`, which keeps the records of small lists in memory.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeGuard

import numpy as np
import pyarrow as pa
from datasets import Dataset

from . import json_files
from .arrow_cache import cached_table
from .lists import ListFile
from .pairs import name_image, no_records_error
from .sources import Reader
from .usable import usable_records


_ROWS_PER_BATCH = 10_000
_PARTS = pa.schema(
    [("image", pa.string()), ("caption", pa.string()), ("name", pa.string()), ("is_text", pa.bool_())]  # of the name
)
# Hashes are grouped in as many parts, one after the other: sorting all of them at once takes more memory.
_NUM_PARTS = 64


def are_large_lists(readers: Sequence[Reader]) -> TypeGuard[Sequence[ListFile]]:
    """Whether the readers are lists, and too large for memory."""
    lists = [reader for reader in readers if isinstance(reader, ListFile)]
    num_bytes = sum(reader.path.stat().st_size for reader in lists)
    return len(lists) == len(readers) and num_bytes > json_files.MAX_BYTES_IN_MEMORY


def read_large_lists(readers: Sequence[ListFile], *, is_joined: bool) -> Dataset:
    """One row per caption, as [`ImageTable.with_captions`]. `is_joined` is as in `read_images`."""
    roots = [os.path.abspath(reader.root.folder or "") for reader in readers]
    return cached_table(readers, partial(_write_pairs, readers, is_joined), key=f"{is_joined} {roots}")


@dataclass
class _IdKinds:
    """What holds for the ids of all records, and for the names of their images."""

    are_given: bool = True
    are_numbers: bool = True  # non-negative integers
    names_are_numbers: bool = True

    def note(self, image_id: int | str | None, name: int | str) -> None:
        self.are_given &= image_id is not None
        self.are_numbers &= isinstance(image_id, int) and image_id >= 0
        self.names_are_numbers &= isinstance(name, int)


@dataclass(frozen=True)
class _Columns:
    """How the columns `image_id` and `source_id` follow from the rows."""

    image_ids: "_Numbers | None"  # `None` if they are the names
    source_column: str = "name"
    names: dict[int, str] | None = None  # of the rows that do not have the name of the first row of their image


def _write_pairs(readers: Sequence[ListFile], is_joined: bool, path: Path) -> None:
    rows = path.with_name(f"{path.name}.rows")
    try:
        kinds = _write_rows(readers, rows)
        if is_joined or not kinds.are_given:
            columns = _columns_by_path(rows)
        else:
            columns = _Columns(None if kinds.are_numbers else _Numbers(_first_rows(_hashes(rows, "name", "is_text"))))
        is_number = columns.source_column == "name" and kinds.names_are_numbers
        _write_table(rows, columns, path, pa.int64() if is_number else pa.string())
    finally:
        rows.unlink(missing_ok=True)


def _write_rows(readers: Sequence[ListFile], path: Path) -> _IdKinds:
    """Writes image, caption and name of each pair, and whether the name is a text or a number."""
    kinds = _IdKinds()
    num_rows = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, _PARTS) as writer:
        rows: list[tuple[bytes | str, str, str, bool]] = []
        for reader in readers:
            for record in usable_records(reader.records(), str(reader.path)):
                name = name_image(record.image_id, str(record.path))
                kinds.note(record.image_id, name)
                is_text = isinstance(name, str)
                rows += [(record.image, caption, str(name), is_text) for caption in record.captions]
                if len(rows) >= _ROWS_PER_BATCH:
                    num_rows += len(rows)
                    writer.write_batch(_batch(rows))
                    rows = []
        if rows:
            writer.write_batch(_batch(rows))
    if not num_rows + len(rows):
        raise no_records_error(readers)
    return kinds


def _batch(rows: Sequence[tuple[bytes | str, str, str, bool]]) -> pa.RecordBatch:
    columns = zip(zip(*rows, strict=True), _PARTS.types, strict=True)
    return pa.record_batch([pa.array(column, kind) for column, kind in columns], _PARTS)


def _write_table(rows: Path, columns: _Columns, path: Path, source_type: pa.DataType) -> None:
    schema = pa.schema(
        {"image": pa.string(), "caption": pa.string(), "image_id": pa.int64(), "source_id": source_type}
    )
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for start, batch in _batches(rows):
            names = batch[columns.source_column]
            if columns.names:
                own = enumerate(names.to_pylist(), start)
                names = pa.array([columns.names.get(row, name) for row, name in own], pa.string())
            if columns.image_ids is None:
                image_ids = names.cast(pa.int64())
            else:
                image_ids = pa.array(columns.image_ids[start : start + len(batch)], pa.int64())
            table = [batch["image"], batch["caption"], image_ids, names.cast(source_type)]
            writer.write_batch(pa.record_batch(table, schema))


def _batches(rows: Path) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches of rows, each with its first row."""
    start = 0
    with pa.OSFile(str(rows)) as file:
        for batch in pa.ipc.open_stream(file):
            yield start, batch
            start += len(batch)


# Ids. The arrays have one number for each row: at most 16 bytes a row at a time.


def _columns_by_path(rows: Path) -> _Columns:
    """Numbers images by their paths. Their names are those of their first rows, or the paths if two share a name."""
    first = _first_rows(_hashes(rows, "image"))
    is_first = _is_first(first)
    names = _hashes(rows, "name")
    are_distinct = _are_distinct(names, is_first)
    renamed = [chunk[names[chunk] != names[first[chunk]]] for chunk in _chunks(len(names))] if are_distinct else []
    del names
    image_ids = _Numbers(first)
    if not are_distinct:
        return _Columns(image_ids, "image")
    return _Columns(image_ids, names=_names_of(rows, np.concatenate(renamed), first))


def _names_of(rows: Path, renamed: np.ndarray, first: np.ndarray) -> dict[int, str]:
    """The names of the first rows of the images of some rows."""
    wanted = set(first[renamed].tolist())
    name_of: dict[int, str] = {}
    for start, batch in _batches(rows) if wanted else ():
        name_of |= {
            row: batch["name"][row - start].as_py() for row in range(start, start + len(batch)) if row in wanted
        }
    return {row: name_of[first[row]] for row in renamed.tolist()}


def _hashes(rows: Path, *columns: str) -> np.ndarray:
    """A hash of 64 bits for each row: with 10,000,000 images, two are equal with a probability of 3e-6."""
    hashes = np.empty(sum(len(batch) for _, batch in _batches(rows)), np.int64)
    for start, batch in _batches(rows):
        values = zip(*(batch[column].to_pylist() for column in columns), strict=True)
        hashes[start : start + len(batch)] = np.fromiter(map(hash, values), np.int64, len(batch))
    return hashes


def _parts(hashes: np.ndarray, is_included: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """The rows of each part: rows with equal hashes are in one part."""
    part_of = hashes.view(np.uint8)[:: hashes.itemsize] % _NUM_PARTS
    for part in range(_NUM_PARTS):
        is_in = part_of == part
        yield np.flatnonzero(is_in if is_included is None else is_in & is_included)


def _first_rows(hashes: np.ndarray) -> np.ndarray:
    """For each row, the first one with the same hash."""
    first = np.empty(len(hashes), np.uint32)
    for rows in _parts(hashes):
        _, index, inverse = np.unique(hashes[rows], return_index=True, return_inverse=True)
        first[rows] = rows[index[inverse]]
    return first


def _are_distinct(hashes: np.ndarray, is_included: np.ndarray) -> bool:
    return all(len(np.unique(hashes[rows])) == len(rows) for rows in _parts(hashes, is_included))


def _is_first(first: np.ndarray) -> np.ndarray:
    return np.concatenate([first[chunk] == chunk for chunk in _chunks(len(first))])


def _chunks(num_rows: int) -> Iterator[np.ndarray]:
    return (np.arange(start, min(start + 2**18, num_rows)) for start in range(0, num_rows, 2**18))


class _Numbers:
    """Numbers of images from 0, in the order of their first rows."""

    def __init__(self, first: np.ndarray) -> None:
        self.first = first
        self.numbers = np.cumsum(_is_first(first), dtype=np.uint32)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.numbers[self.first[rows]].astype(np.int64) - 1


__all__ = ["are_large_lists", "read_large_lists"]
