# SPDX-License-Identifier: BSD-3-Clause
"""Streams JSON lists, the lists in a JSON object, and JSON lines record by record in constant memory."""

import codecs
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO


MAX_BYTES_IN_MEMORY = 2**22
"""Size in bytes of files that are kept in memory: some 30,000 records."""
MAX_RECORD_BYTES = 2**24
"""Maximum size in bytes of a record."""
_CHUNK = 1 << 20  # bytes
_DECODER = json.JSONDecoder()
_BEHIND_VALUES = frozenset(" \t\n\r,:]}")
_WHITE_SPACE = re.compile(r"[ \t\n\r]*")


def iterate_json_list(path: Path, start: int | None = None) -> Iterator[tuple[int, Any]]:
    """The records of a JSON list, each with its first byte, from the record at byte `start` on."""
    with path.open("rb") as file:
        window = _Window(file, _start_of_text(file) if start is None else start)
        with _located_errors(
            path, window, "one list of JSON records in UTF-8; name a file with one record a line .jsonl"
        ):
            for first_byte, _, record in _items(window, is_resumed=start is not None):
                yield first_byte, record
            if window.peek():
                raise ValueError("more text follows the list")


@contextmanager
def _located_errors(path: Path, window: "_Window", expected: str) -> Iterator[None]:
    """Raises errors of the syntax with the file, the place and what is expected."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be parsed after byte {window.offset} ({error}). Expected {expected}."
        ) from error


@dataclass(frozen=True)
class JsonArray:
    """A list with records in a JSON file. They are parsed one by one, and each iteration parses them again."""

    path: Path
    offset: int  # of the bracket
    first: Any

    def __iter__(self) -> Iterator[Any]:
        return (record for _, _, record in self.located())

    def located(self) -> Iterator[tuple[int, int, Any]]:
        """The records, each with its first byte and the byte after its last one."""
        with self.path.open("rb") as file:
            yield from _items(_Window(file, self.offset))


@dataclass(frozen=True)
class JsonLines:
    """The records of JSON lines. Each iteration parses them again, and raises `ValueError` for an invalid line."""

    path: Path

    def __iter__(self) -> Iterator[Any]:
        for row, (_, record) in enumerate(iterate_json_lines(self.path, errors="strict")):
            if isinstance(record, Exception):
                raise ValueError(
                    f"{self.path} cannot be parsed: record {row}: {record}. Expected JSON in UTF-8, one record a line."
                ) from record
            yield record


JsonRecords = list | JsonArray | JsonLines


def read_json_outline(path: Path) -> Any:
    """The content of a JSON file without its records: a [`JsonArray`] for each list with records.

    Lists are kept at the top and in an object at the top. Other objects are empty. Parses the whole file once, so all
    errors of its syntax are raised here.
    """
    with path.open("rb") as file:
        window = _Window(file, _start_of_text(file))
        expected = (
            "JSON in UTF-8: in a .json file one value, such as a list of records; in a .jsonl file one record a line"
        )
        with _located_errors(path, window, expected):
            is_object = window.peek() == "{"
            content = {key: _skim(window, path) for key in _keys(window)} if is_object else _skim(window, path)
            if window.peek():
                raise ValueError("more text follows the first value")
    return content


def iterate_json_lines(path: Path, start: int | None = None, *, errors: str = "replace") -> Iterator[tuple[int, Any]]:
    """The records of JSON lines, each with its first byte, from the line at byte `start` on.

    Yields the `Exception` of a line that cannot be parsed. Skips empty lines. `errors` says what to do with invalid
    UTF-8: `"replace"` it, or with `"strict"` yield the exception.
    """
    with path.open("rb") as file:
        offset = _start_of_text(file) if start is None else start
        file.seek(offset)
        while line := file.readline(MAX_RECORD_BYTES + 1):
            if not line.isspace():
                yield offset, _parse_line(line, errors)
            offset += len(line)
            while len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):  # the rest of a huge line
                line = file.readline(MAX_RECORD_BYTES + 1)
                offset += len(line)


def _parse_line(line: bytes, errors: str) -> Any:
    try:
        if len(line) > MAX_RECORD_BYTES:
            raise ValueError(f"the record has more than {MAX_RECORD_BYTES} bytes")
        return json.loads(line.decode("utf-8", errors=errors))
    except (ValueError, RecursionError) as error:
        return error


def _start_of_text(file: BinaryIO) -> int:
    return len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0


def _items(window: "_Window", *, is_resumed: bool = False) -> Iterator[tuple[int, int, Any]]:
    """The values of a list, each with its first byte and the byte after its last one."""
    if not is_resumed:
        window.take("[")
    behind = window.take("]") if not is_resumed and window.peek() == "]" else ","
    while behind == ",":
        window.peek()
        start, value = window.offset, window.parse()
        yield start, window.offset, value
        behind = window.take(",]")


def _keys(window: "_Window") -> Iterator[str]:
    """The keys of an object. The caller consumes the value of a key before it asks for the next one."""
    window.take("{")
    behind = window.take("}") if window.peek() == "}" else ","
    while behind == ",":
        if window.peek() != '"':
            raise ValueError(f"expected a key in double quotes, found {window.peek()!r}")
        key = window.parse()
        window.take(":")
        yield key
        behind = window.take(",}")


def _skim(window: "_Window", path: Path) -> Any:
    """The next value, without the content of lists and objects."""
    start = window.peek()
    if start == "{":
        for _ in _keys(window):
            _skim(window, path)
        return {}
    if start != "[":
        return window.parse()
    offset, items = window.offset, _items(window)
    first = next(items, None)
    for _ in items:
        pass
    return JsonArray(path, offset, first[2]) if first else []


class _Window:
    """The part of a text file that is being parsed. `offset` is the first byte that is not parsed yet."""

    def __init__(self, file: BinaryIO, offset: int) -> None:
        file.seek(offset)
        self.file = file
        self.offset = offset
        self.text = ""
        self.position = 0
        self.is_whole = False  # whether the text reaches the end of the file
        self.decoder = codecs.getincrementaldecoder("utf-8")()

    def peek(self) -> str:
        """The next character that is not white space, or an empty string at the end of the file."""
        while True:
            space = _WHITE_SPACE.match(self.text, self.position)
            assert space is not None  # it may be empty
            self._advance(space.end())
            if self.position < len(self.text) or self.is_whole:
                return self.text[self.position : self.position + 1]
            self._read_more()

    def take(self, expected: str) -> str:
        """Consumes the next character that is not white space, which must be one of `expected`."""
        found = self.peek()
        if not found or found not in expected:
            raise ValueError(f"expected {' or '.join(map(repr, expected))}, found {found!r}")
        self._advance(self.position + 1)
        return found

    def parse(self) -> Any:
        """The next value. Reads until a separator or the end of the file follows: `12` may be the start of `12.3`."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
            except json.JSONDecodeError:
                if self.is_whole:
                    raise
            else:
                if self.text[end : end + 1] in _BEHIND_VALUES or self.is_whole:
                    self._advance(end)
                    return value
            self._read_more()

    def _advance(self, position: int) -> None:
        self.offset += len(self.text[self.position : position].encode())
        self.position = position

    def _read_more(self) -> None:
        left = self.text[self.position :]
        if len(left) > MAX_RECORD_BYTES:
            raise ValueError(f"a record has more than {MAX_RECORD_BYTES} bytes")
        # Doubles the window, so a long value is not parsed again for each chunk.
        content = self.file.read(max(_CHUNK, len(left)))
        self.text, self.position = left + self.decoder.decode(content, final=not content), 0
        self.is_whole = not content


__all__ = ["JsonArray", "JsonLines", "JsonRecords", "iterate_json_lines", "iterate_json_list", "read_json_outline"]
