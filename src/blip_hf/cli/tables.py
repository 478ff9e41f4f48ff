# SPDX-License-Identifier: BSD-3-Clause
"""Rows as a table for the eye, JSON or CSV."""

import csv
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TextIO


TableFormat = Literal["table", "json", "csv"]

# A name with a new line in it would break the lines of the table.
_ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})


def write_table(rows: Sequence[Mapping[str, Any]], stream: TextIO, table_format: TableFormat) -> None:
    """Writes rows of equal columns. Tables have numbers with four digits, JSON and CSV have them in full."""
    if table_format == "json":
        stream.write(json.dumps(rows, indent=2) + "\n")
    elif rows and table_format == "csv":
        writer = csv.DictWriter(stream, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    elif rows:
        stream.writelines(_lines(rows))


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Aligned columns with their names: numbers to the right, texts to the left."""
    cells = [[name, *(_cell(row[name]) for row in rows)] for name in rows[0]]
    columns = []
    for name, column in zip(rows[0], cells, strict=True):
        width = max(map(len, column))
        is_number = isinstance(rows[0][name], float)
        columns.append([cell.rjust(width) if is_number else cell.ljust(width) for cell in column])
    return ["  ".join(line).rstrip() + "\n" for line in zip(*columns, strict=True)]


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value).translate(_ESCAPES)


__all__ = ["TableFormat", "write_table"]
