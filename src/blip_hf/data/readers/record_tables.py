# SPDX-License-Identifier: BSD-3-Clause
"""Tables of questions and sentences: in memory, or for large files in an Arrow file, which is memory-mapped."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, Value

from . import json_files
from .arrow_cache import cached_table


_ROWS_PER_BATCH = 5_000


@dataclass(frozen=True)
class _SourceFile:
    path: Path


def record_table(
    read: Callable[[], Iterable[Mapping[str, Any]]],
    files: Sequence[Path],
    features: Features,
    *,
    id_field: str,
    key: Callable[[], str],
) -> Dataset:
    """The records of files, one row each.

    Args:
        read (`Callable`):
            Reads the records.
        files (sequence of `Path`):
            The files that it reads.
        features (`datasets.Features`):
            The columns.
        id_field (`str`):
            The column of ids: integers, or texts if one of them is a text.
        key (`Callable`):
            Describes what else the records depend on.
    """
    if _are_large(files):
        write = partial(_write_table, read, features, id_field)
        return cached_table([_SourceFile(path) for path in files], write, key=key())
    records = list(read())
    columns = {field: [record[field] for record in records] for field in features}
    are_numbers = all(isinstance(own_id, int) for own_id in columns[id_field])
    if not are_numbers:
        columns[id_field] = list(map(str, columns[id_field]))
    return Dataset.from_dict(columns, features=_with_ids(features, id_field, are_numbers))


def _are_large(files: Sequence[Path]) -> bool:
    """Whether the files are too large for memory. The reader names one that does not exist."""
    are_files = all(path.is_file() for path in files)
    return are_files and sum(path.stat().st_size for path in files) > json_files.MAX_BYTES_IN_MEMORY


def _with_ids(features: Features, id_field: str, are_numbers: bool) -> Features:
    return Features({**features, id_field: Value("int64" if are_numbers else "string")})


def _write_table(
    read: Callable[[], Iterable[Mapping[str, Any]]], features: Features, id_field: str, path: Path
) -> None:
    rows = path.with_name(f"{path.name}.rows")
    try:
        are_numbers = _write_rows(read(), _with_ids(features, id_field, are_numbers=False), id_field, rows)
        if are_numbers:
            _cast(rows, _with_ids(features, id_field, are_numbers).arrow_schema, path)
        else:
            rows.replace(path)
    finally:
        rows.unlink(missing_ok=True)


def _write_rows(records: Iterable[Mapping[str, Any]], features: Features, id_field: str, path: Path) -> bool:
    """Writes records with their ids as texts. Returns whether all ids are numbers."""
    are_numbers = True
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, features.arrow_schema) as writer:
        for batch in _batches(records):
            are_numbers &= all(isinstance(record[id_field], int) for record in batch)
            rows = [{**record, id_field: str(record[id_field])} for record in batch]
            writer.write_batch(pa.RecordBatch.from_pylist(rows, features.arrow_schema))
    return are_numbers


def _batches(records: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    records = iter(records)
    while batch := list(islice(records, _ROWS_PER_BATCH)):
        yield batch


def _cast(rows: Path, schema: pa.Schema, path: Path) -> None:
    with pa.OSFile(str(rows)) as source, pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in pa.ipc.open_stream(source):
            writer.write_batch(batch.cast(schema))


__all__ = ["record_table"]
