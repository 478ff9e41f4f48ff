# SPDX-License-Identifier: BSD-3-Clause
"""Formats of the captions that `blip-hf caption` writes into one file."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from .errors import UsageError
from .output import escape_controls, escape_formula


Format = Literal["text", "jsonl", "json", "csv", "sidecar"]
_FORMATS_OF_SUFFIXES: dict[str, Format] = {
    ".txt": "text",
    ".tsv": "text",
    ".jsonl": "jsonl",
    ".json": "json",
    ".csv": "csv",
}

Record = dict[str, Any]


def format_of(output: Path | None, chosen: Format | None) -> Format:
    """The format to write: the chosen one, that of the suffix of the file, or text.

    Raises:
        UsageError: If the suffix stands for another format than the chosen one.
    """
    implied = None if output is None else _FORMATS_OF_SUFFIXES.get(output.suffix.lower())
    if chosen is not None and implied not in (None, chosen):
        raise UsageError(f"--format {chosen} contradicts --output {output}. Leave --format out, or change the suffix.")
    return chosen or implied or "text"


def write_records(records: Iterable[Record], stream: TextIO, *, columns: Sequence[str], output_format: Format) -> None:
    """Writes the columns of each record as it comes."""
    rows = ({column: record[column] for column in columns} for record in records)
    lines = {"text": _text_lines, "jsonl": _jsonl_lines, "json": _json_lines, "csv": _csv_lines}[output_format]
    for line in lines(rows, stream, columns):
        stream.write(line)
        stream.flush()


def read_records(path: Path, *, columns: Sequence[str], output_format: Format) -> list[Record]:
    """The records of a file that `write_records` wrote. Values of text and CSV are strings.

    Raises:
        UsageError: If the file does not have these columns in this format.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            records = _read(stream, columns, output_format)
            if all(set(record) == set(columns) for record in records):
                return records
            problem = f"its columns are not {', '.join(columns)}"
    except (ValueError, TypeError) as error:
        problem = str(error)
    raise UsageError(
        f"{path} cannot be read as {output_format} ({problem}), so its captions cannot be kept. Pass another --output, or"
        " --overwrite to replace it."
    )


def name_in_file(name: str, output_format: Format) -> str:
    """The name of an image as `read_records` returns it."""
    if output_format in ("json", "jsonl"):
        return name
    name = escape_controls(name) if output_format == "text" else escape_formula(name)
    return name.encode(errors="backslashreplace").decode()


def _read(stream: TextIO, columns: Sequence[str], output_format: Format) -> list[Record]:
    if output_format == "csv":
        return list(csv.DictReader(stream))
    if output_format == "json":
        return json.load(stream)
    lines = stream.read().split("\n")[:-1]
    if output_format == "jsonl":
        return [json.loads(line) for line in lines]
    return [dict(zip(columns, line.split("\t"), strict=True)) for line in lines]


def _text_lines(rows: Iterable[Record], stream: TextIO, columns: Sequence[str]) -> Iterator[str]:
    for row in rows:
        cells = (f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values())
        yield "\t".join(escape_controls(cell) for cell in cells) + "\n"


def _jsonl_lines(rows: Iterable[Record], stream: TextIO, columns: Sequence[str]) -> Iterator[str]:
    for row in rows:
        yield _dump(row, stream) + "\n"


def _json_lines(rows: Iterable[Record], stream: TextIO, columns: Sequence[str]) -> Iterator[str]:
    yield "["
    for index, row in enumerate(rows):
        yield (",\n" if index else "\n") + _dump(row, stream)
    yield "\n]\n"


def _csv_lines(rows: Iterable[Record], stream: TextIO, columns: Sequence[str]) -> Iterator[str]:
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(columns)
    for row in rows:
        table.writerow(map(escape_formula, row.values()))
        yield ""  # flushes


def _dump(row: Record, stream: TextIO) -> str:
    # The escapes of another encoding's error handler, such as \x81, are not JSON.
    is_utf8 = (stream.encoding or "").lower().replace("-", "") == "utf8"
    return json.dumps(row, ensure_ascii=not is_utf8)


__all__ = ["Format", "format_of", "name_in_file", "read_records", "write_records"]
