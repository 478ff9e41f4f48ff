# SPDX-License-Identifier: BSD-3-Clause
"""Conditions on the images of an index: `FIELD OP VALUE`, or a folder alone."""

import datetime
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


FILTER_HELP = (
    "a folder; FIELD=GLOB or FIELD!=GLOB of path, caption or image_id; or a comparison (=, !=, <, <=, >, >=) of width,"
    " height, bytes or modified (a date such as 2026-11-28)"
)
_CONDITION = re.compile(r"(?P<field>[a-z_]+)\s*(?P<operator><=|>=|!=|=|<|>)\s*(?P<value>.*)", re.DOTALL)
_TEXTS = {"path": "name", "caption": "caption", "image_id": "image_id"}
_NUMBERS: dict[str, tuple[str, Callable[[str], int]]] = {
    "width": ("width", int),
    "height": ("height", int),
    "bytes": ("bytes", int),
    "modified": ("mtime_ns", lambda text: int(datetime.datetime.fromisoformat(text).timestamp() * 1_000_000_000)),
}


@dataclass(frozen=True)
class Filter:
    """An SQL condition on the images of a store, and its values."""

    condition: str | None = None
    values: tuple[Any, ...] = ()


def parse_filters(texts: Iterable[str]) -> Filter:
    """The filter of images that fulfil all conditions.

    Raises:
        ValueError: If a condition cannot be read.

    Example:
        >>> parse_filters(["width>=640", "caption=*dog*"])
        Filter(condition='(width >= ?) AND (caption GLOB ?)', values=(640, '*dog*'))
    """
    filters = [_parse(text) for text in texts]
    if not filters:
        return Filter()
    return Filter(
        " AND ".join(f"({own.condition})" for own in filters), tuple(value for own in filters for value in own.values)
    )


def _parse(text: str) -> Filter:
    match = _CONDITION.fullmatch(text)
    if match is None or (match["field"] not in {*_TEXTS, *_NUMBERS} and os.path.exists(text)):
        return _in_folder(text)
    field, operator, value = match.group("field", "operator", "value")
    if field in _TEXTS and operator in ("=", "!="):
        column = _TEXTS[field]
        return Filter(f"{column} {'GLOB' if operator == '=' else 'NOT GLOB'} ?", (value,))
    if field in _NUMBERS:
        column, convert = _NUMBERS[field]
        try:
            return Filter(f"{column} {operator} ?", (convert(value),))
        except ValueError as error:
            raise ValueError(f"The filter {text!r} has the value {value!r}. Pass {FILTER_HELP}.") from error
    raise ValueError(f"The filter {text!r} is unknown. Pass {FILTER_HELP}.")


def _in_folder(text: str) -> Filter:
    folder = os.fsencode(os.path.join(os.path.abspath(os.path.expanduser(text)), ""))
    return Filter("substr(CAST(name AS BLOB), 1, ?) = ?", (len(folder), folder))


__all__ = ["FILTER_HELP", "Filter", "parse_filters"]
