# SPDX-License-Identifier: BSD-3-Clause
"""Bounds of Parquet pages, checked before Arrow decompresses them.

The footer of a file may lie about sizes, and a page of a few bytes can repeat a large value of its dictionary. Arrow allocates
what the header of a page declares, so each header is checked first: in a local file with a small read for each page, else while Arrow
reads its bytes.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .tar_stream import FREE_BYTES, MAX_EXPANSION


ROWS_PER_READ = 64
_VALUE_BYTES = 64  # of a list element in memory, also of one that takes a fraction of a bit in the file
_MAX_HEADER_BYTES = 2**24  # as in Arrow
_HEADER_BYTES = 2**12
_DICTIONARY_PAGE = 2
_DELTA_BYTE_ARRAY = 7  # each value may repeat a prefix of the one before


class LargeDictionaryError(pa.ArrowInvalid):
    """Raised if a batch of rows could repeat too much of a dictionary. `num_rows` are accepted."""

    def __init__(self, num_rows: int) -> None:
        super().__init__("the dictionary of a column is too large for so many rows at once")
        self.num_rows = num_rows


@dataclass
class PageHeader:
    """The sizes that a page declares."""

    kind: int
    size: int  # decompressed
    stored: int
    num_values: int
    encoding: int
    header_bytes: int


@dataclass
class _Chunk:
    """The pages of a column in a row group, of which those before `next_page` are checked."""

    column: str
    start: int
    stop: int
    is_nested: bool
    next_page: int
    size: int = 0


class PageBounds(io.RawIOBase):
    """A Parquet file that is read by Arrow. Raises `pa.ArrowInvalid` for a page that expands too much."""

    def __init__(self, file: io.RawIOBase) -> None:
        self._file = file
        self._chunks: list[_Chunk] = []
        self._num_rows = ROWS_PER_READ

    def expect(self, parquet: pq.ParquetFile, group: int, columns: Sequence[str], num_rows: int) -> None:
        """Starts the checks of columns of a row group, of which `num_rows` are read at once."""
        metadata = parquet.metadata.row_group(group)
        self._num_rows = num_rows
        self._chunks = []
        for number in range(metadata.num_columns):
            column = metadata.column(number)
            if not any(f"{column.path_in_schema}.".startswith(f"{name}.") for name in columns):
                continue
            offsets = [column.data_page_offset, column.dictionary_page_offset or 0]
            start = min(offset for offset in offsets if offset > 0)
            stop = start + column.total_compressed_size
            is_nested = parquet.schema.column(number).max_repetition_level > 0
            self._chunks.append(_Chunk(column.path_in_schema, start, stop, is_nested, next_page=start))

    def check_all(self) -> None:
        """Checks all pages of the row group, each with a small read."""
        for chunk in self._chunks:
            while chunk.next_page < chunk.stop:
                self._check(chunk, chunk.stop, b"")

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The position of the next read."""
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Sets the position of the next read."""
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        """Returns the next bytes, after the headers of the pages that start in them are checked."""
        start = self.tell()
        content = self._file.read(size)
        stop = start + len(content)
        for chunk in self._chunks:
            while start < chunk.stop and chunk.next_page < min(stop, chunk.stop):
                self._check(chunk, start, content)
        return content

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()

    def _check(self, chunk: _Chunk, start: int, content: bytes) -> None:
        page = self._header(chunk.next_page, start, content)
        bound = FREE_BYTES + MAX_EXPANSION * (chunk.next_page - chunk.start + page.header_bytes + page.stored)
        chunk.size += page.size + (_VALUE_BYTES * page.num_values if chunk.is_nested else 0)
        size = page.size * ROWS_PER_READ if page.encoding == _DELTA_BYTE_ARRAY else chunk.size
        if size > bound:
            raise pa.ArrowInvalid(
                f"column {chunk.column!r} expands from {page.stored} to {size} bytes, at most {bound} are accepted"
            )
        if page.kind == _DICTIONARY_PAGE:
            if chunk.next_page != chunk.start:
                raise pa.ArrowInvalid(f"column {chunk.column!r} has a dictionary behind its values")
            if self._num_rows > 1 and page.size * self._num_rows > FREE_BYTES:
                raise LargeDictionaryError(max(1, FREE_BYTES // page.size))
        chunk.next_page += page.header_bytes + page.stored

    def _header(self, offset: int, start: int, content: bytes) -> PageHeader:
        """The header at an offset, from the bytes that were read at `start` if it is in them."""
        if offset >= start:
            try:
                return parse_page_header(memoryview(content)[offset - start :][:_HEADER_BYTES])
            except IndexError:
                pass  # it ends later
        position = self.tell()
        try:
            for size in (_HEADER_BYTES, _MAX_HEADER_BYTES):
                self._file.seek(offset)
                try:
                    return parse_page_header(memoryview(self._file.read(size)))
                except IndexError:
                    continue
        finally:
            self._file.seek(position)
        raise pa.ArrowInvalid(f"the page header at byte {offset} is truncated")


def parse_page_header(content: memoryview) -> PageHeader:
    """Parses `PageHeader` of the Parquet format. Raises `IndexError` if it is truncated, `pa.ArrowInvalid` if it is broken."""
    reader = _CompactReader(content)
    fields = reader.read_struct()
    values: dict[int, Any] = next((fields[number] for number in (5, 7, 8) if number in fields), {})
    numbers = [fields.get(1), fields.get(2), fields.get(3), values.get(1, 0), values.get(4 if 8 in fields else 2, 0)]
    if not all(isinstance(number, int) and 0 <= number < 2**31 for number in numbers):
        raise pa.ArrowInvalid("a page header declares invalid sizes")
    return PageHeader(*numbers, reader.position)  # type: ignore[call-arg]  # five numbers


class _CompactReader:
    """Reads structs of Thrift's compact protocol: integers of 32 bits and nested structs by field number."""

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self.position = 0

    def read_struct(self, depth: int = 0) -> dict[int, Any]:
        if depth > 8:
            raise pa.ArrowInvalid("a page header is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._read_byte():
            number = number + (head >> 4) if head >> 4 else self._read_integer()
            value = self._read_value(head & 15, depth)
            if value is not None:
                fields[number] = value
        return fields

    def _read_value(self, kind: int, depth: int) -> Any:
        """An integer of 32 bits or a struct. Other values are skipped."""
        if kind == 5:
            return self._read_integer()
        if kind == 12:
            return self.read_struct(depth + 1)
        if kind in (4, 6):
            self._read_integer()
        elif kind in (3, 7, 8):
            self._skip({3: 1, 7: 8}.get(kind) or self._read_varint())
        elif kind not in (1, 2):  # true and false
            raise pa.ArrowInvalid("a page header is not valid")
        return None

    def _skip(self, size: int) -> None:
        self.position += size
        if self.position > len(self._content):
            raise IndexError

    def _read_byte(self) -> int:
        byte = self._content[self.position]
        self.position += 1
        return byte

    def _read_integer(self) -> int:
        number = self._read_varint()
        return (number >> 1) ^ -(number & 1)

    def _read_varint(self) -> int:
        number = 0
        for shift in range(0, 70, 7):
            byte = self._read_byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise pa.ArrowInvalid("a page header has an invalid number")


__all__ = ["ROWS_PER_READ", "LargeDictionaryError", "PageBounds", "parse_page_header"]
