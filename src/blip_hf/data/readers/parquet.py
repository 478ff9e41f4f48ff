# SPDX-License-Identifier: BSD-3-Clause
"""Parquet files with images, read a few rows at a time, and rows of tables in general."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .image_root import ImageRoot
from .parquet_pages import ROWS_PER_READ, LargeDictionaryError, PageBounds
from .records import (
    CAPTION_FIELDS,
    ImageRecord,
    Record,
    RecordStream,
    field_error,
    read_captions,
    read_optional_id,
)
from .remote import BLOCK_BYTES, RemoteFile
from .samples import Shard, Skipped, Stream
from .tar_stream import FREE_BYTES, MAX_EXPANSION
from .usable import skipped_record


BUFFER_BYTES = 2**20  # of a column

# What Arrow raises for broken content.
_BROKEN = (pa.ArrowException, UnicodeDecodeError, OSError)

# Columns of img2dataset's Parquet and their standard names. Image columns have the name of the encoding.
_IMG2DATASET_IMAGES = ("jpg", "png", "webp")
_IMG2DATASET_FIELDS = {"txt": "caption", "key": "id"}
_URL_COLUMNS = ("url", "image_url", "img_url", "image_link")


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file, which is one shard. Relative image paths start from `root`."""

    path: Path | RemoteFile
    name: str
    root: ImageRoot
    needs_captions: bool = True

    def shards(self, shard_size: int) -> list[Shard]:
        """The one shard."""
        return [Shard(self.name, self._stream, self._count)]

    def records(self) -> RecordStream:
        """Records and skipped ones, in order."""
        return self._read(strict=True)

    def check(self) -> None:
        """Raises `ValueError` if the file has no images. Ignores a broken file, which the stream reports."""
        try:
            with _OpenParquet(self.path) as file:
                schema = file.parquet.schema_arrow
                columns = find_columns(schema.names, str(self.path), needs_captions=self.needs_captions)
                if schema.field(columns["image"]).type in (pa.string(), pa.large_string()):
                    first = next(file.rows(0, [columns["image"]]), {}) if file.parquet.num_row_groups else {}
                    if str(first.get(columns["image"])).startswith(("http://", "https://")):
                        raise _urls_error(str(self.path), columns["image"])
        except _BROKEN:
            return

    def _count(self) -> int | None:
        """Number of rows in the footer of the file, or `None` for a broken file."""
        if isinstance(self.path, RemoteFile):
            return _count_remote_rows(self.path)
        try:
            return pq.read_metadata(self.path).num_rows
        except _BROKEN:
            return None

    def _stream(self) -> Stream:
        for item in self._read(strict=False):
            yield from [item] if isinstance(item, Skipped) else item.samples()

    def _read(self, *, strict: bool) -> RecordStream:
        try:
            file = _OpenParquet(self.path)
            columns = find_columns(file.parquet.schema_arrow.names, str(self.path), needs_captions=self.needs_captions)
        except _BROKEN as error:
            yield Skipped(self.name, "bad_record", f"{self.path} is not a Parquet file: {_detail(error)}")
            return
        with file:
            row = 0
            for group in range(file.parquet.num_row_groups):
                next_group = row + file.parquet.metadata.row_group(group).num_rows
                try:
                    for raw in file.rows(group, list(columns.values())):
                        where = f"{self.path}, record {row}" if strict else None
                        named = {name: raw[column] for name, column in columns.items()}
                        yield read_row(named, row, self.name, self.root, self.needs_captions, where)
                        row += 1
                except _BROKEN as error:
                    detail = f"rows {row} to {next_group - 1}: {_detail(error)}"
                    detail = f"{self.path}, {detail}" if strict else detail
                    yield Skipped(f"{self.name}/{row:08d}", "bad_record", detail)
                row = next_group


def find_columns(present: Collection[str], name: str, *, needs_captions: bool = True) -> dict[str, str]:
    """Columns of a table by standard name: `image`, captions, `id`, `image_id`, and img2dataset's `status` and error."""
    columns = {field: field for field in ("image", *CAPTION_FIELDS, "id", "image_id") if field in present}
    if "image" not in present and (image := next((own for own in _IMG2DATASET_IMAGES if own in present), None)):
        columns |= {
            own: field for field, own in _IMG2DATASET_FIELDS.items() if field in present and own not in columns
        }
        columns |= {"image": image} | {field: field for field in ("status", "error_message") if field in present}
    if "image" not in columns and (url := next((own for own in present if own.lower() in _URL_COLUMNS), None)):
        raise _urls_error(name, url)
    if "image" not in columns or (needs_captions and not columns.keys() & set(CAPTION_FIELDS)):
        captions = f" and one of {', '.join(map(repr, CAPTION_FIELDS))}" if needs_captions else ""
        raise ValueError(
            f"{name} has the columns {', '.join(present)}, expected 'image' (or img2dataset's 'jpg', 'png' or 'webp')"
            f"{captions}. Rename them."
        )
    return columns


def read_row(
    raw: Record, row: int, name: str, root: ImageRoot, needs_captions: bool, where: str | None = None
) -> ImageRecord | Skipped:
    """The record of a row with the columns that [`find_columns`] names, or why it is skipped."""
    sample_id = f"{name}/{row:08d}"
    key: int | str = row
    try:
        own_id = read_optional_id(raw, "id", where or sample_id)
        if own_id is not None:
            sample_id, key = f"{name}/{own_id}", own_id
        if raw["image"] is None and raw.get("status") not in (None, "success"):
            detail = f"img2dataset did not download it: {raw.get('error_message') or raw['status']}"
            return Skipped(sample_id, "unreadable_image", detail)
        return ImageRecord(
            sample_id=sample_id,
            key=key,
            image=_read_image(raw, where or sample_id, root),
            captions=read_captions(raw, where or sample_id, required=needs_captions),
            image_id=read_optional_id(raw, "image_id", where or sample_id),
        )
    except ValueError as error:
        return skipped_record(sample_id, error)


def _read_image(raw: Record, where: str, root: ImageRoot) -> bytes | str:
    value = raw["image"]
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value:
        return root.join(value, where)
    raise field_error(raw, "image", where, "encoded bytes, a path, or a struct of bytes and path")


class _OpenParquet:
    """An open file, whose pages are bounded."""

    def __init__(self, path: Path | RemoteFile) -> None:
        self._is_remote = isinstance(path, RemoteFile)
        file = path.open_ranges() if isinstance(path, RemoteFile) else path.open("rb", buffering=0)
        self._pages = PageBounds(file)
        try:
            # `pre_buffer` would read a whole group at once.
            if self._is_remote:
                self.parquet = pq.ParquetFile(self._pages, buffer_size=BLOCK_BYTES, pre_buffer=False)
            else:  # Arrow reads a path faster than a file of Python
                self.parquet = pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)
        except BaseException:
            self._pages.close()
            raise

    def __enter__(self) -> "_OpenParquet":
        return self

    def __exit__(self, *exception: object) -> None:
        self.parquet.close()
        self._pages.close()

    def rows(self, group: int, columns: list[str]) -> Iterator[dict[str, Any]]:
        """The rows of a group. Raises `pa.ArrowInvalid` if they expand to far more than their size in the file."""
        bound = _check_expansion(self.parquet, group)
        size = 0
        for batch in self._batches(group, columns):
            for row in batch.to_pylist():
                size += _size(row)
                if size > bound:
                    raise pa.ArrowInvalid(f"the rows expand to more than {bound} bytes")
                yield row

    def _batches(self, group: int, columns: list[str], num_rows: int = ROWS_PER_READ) -> Iterator[pa.RecordBatch]:
        self._pages.expect(self.parquet, group, columns, num_rows)
        try:
            if not self._is_remote:
                self._pages.check_all()
            yield from self.parquet.iter_batches(num_rows, row_groups=[group], columns=columns)
        except LargeDictionaryError as error:  # before the first row
            yield from self._batches(group, columns, error.num_rows)


@cache
def _count_remote_rows(file: RemoteFile) -> int | None:
    """Number of rows, or `None` for a broken file. It is asked for often, and each time needs a request."""
    try:
        with _OpenParquet(file) as opened:
            return opened.parquet.metadata.num_rows
    except _BROKEN as error:
        _detail(error)
        return None


def _check_expansion(file: pq.ParquetFile, group: int) -> int:
    """Bytes that a row group may expand to. Raises if it declares more for a column."""
    metadata = file.metadata.row_group(group)
    bound = FREE_BYTES
    for column in map(metadata.column, range(metadata.num_columns)):
        size, stored = column.total_uncompressed_size, column.total_compressed_size
        bound += MAX_EXPANSION * max(stored, 0)
        if size > FREE_BYTES + MAX_EXPANSION * max(stored, 0):
            raise pa.ArrowInvalid(f"column {column.path_in_schema!r} expands from {stored} to {size} bytes")
    return bound


def _size(value: Any) -> int:
    """Bytes of the texts and images in a row."""
    if isinstance(value, (bytes, str)):
        return len(value)
    if isinstance(value, (dict, list)):
        return sum(map(_size, value.values() if isinstance(value, dict) else value))
    return 0


def _detail(error: Exception) -> str:
    """The error of broken content. A disk error is raised, since a retry may succeed."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return str(error).strip()


def _urls_error(name: str, column: str) -> ValueError:
    return ValueError(
        f"{name} has URLs (column {column!r}) and no images. Download them first, with img2dataset --url_list {name}"
        f" --input_format parquet --url_col {column} --caption_col COLUMN --output_format webdataset --output_folder FOLDER,"
        " and pass FOLDER."
    )


__all__ = ["ParquetFile", "find_columns", "read_row"]
