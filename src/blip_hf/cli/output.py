# SPDX-License-Identifier: BSD-3-Clause
"""What commands write: stdout that any terminal and pipe can take, and files that are not overwritten by accident."""

import io
import os
import re
import select
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ..files import atomic_write
from .errors import UsageError


_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Formulas of spreadsheets start with these, also after white space.
_FORMULA_STARTS = ("=", "+", "-", "@")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?")


def escape_controls(text: str) -> str:
    r"""Escapes control characters of names and texts, which could drive a terminal or break lines and columns.

    Example:
        >>> escape_controls("a\tb\x1b[2J.png")
        'a\\tb\\x1b[2J.png'
    """
    if text.isprintable():
        return text
    return "".join(c if _is_harmless(c) else c.encode("unicode_escape").decode() for c in text)


def escape_formula(value: Any) -> Any:
    """Puts an apostrophe before a text that a spreadsheet would run as a formula, without control characters.

    Example:
        >>> escape_formula("=1+1"), escape_formula("a=1"), escape_formula(-0.5)
        ("'=1+1", 'a=1', -0.5)
    """
    if not isinstance(value, str):
        return value
    text = escape_controls(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA_STARTS) and not _NUMBER.fullmatch(text) else text


def _is_harmless(character: str) -> bool:
    # Cc: control characters; Zl, Zp: other line ends; and marks that reverse the direction of a name.
    return unicodedata.category(character) not in ("Cc", "Zl", "Zp") and character not in _DIRECTIONS


def escape_unprintable() -> None:
    """Makes stdout and stderr escape characters that their encoding lacks, such as those of a non-UTF-8 file name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def silence_closed_streams() -> bool:
    """Redirects stdout and stderr to nowhere where their reader, such as `head`, has closed the pipe.

    Returns whether there was such a stream.
    """
    closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed_pipe(stream)]
    for stream in closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(closed)


def _is_closed_pipe(stream: TextIO) -> bool:
    try:
        stream.flush()
        descriptor = stream.fileno()
    except BrokenPipeError:
        return True
    except (OSError, ValueError):
        return False  # not a file, as under a test
    if sys.platform == "win32":
        return False  # there the flush above fails
    # An unbuffered stream has nothing to flush, so the pipe is asked.
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def refuse_existing(path: str | os.PathLike[str], *, remedy: str) -> None:
    """Raises if a file or a folder with files is there already."""
    path = Path(path)
    if path.is_file():
        raise UsageError(f"{path} exists. Pass another path, or {remedy}.")
    if path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir()):
        raise UsageError(f"{path} is not empty. Pass another folder, or {remedy}.")


@contextmanager
def open_output(path: Path | None) -> Iterator[TextIO]:
    """A text file that appears under its name only when it is complete, or stdout if no path is given."""
    if path is None:
        yield sys.stdout
        return
    with (
        atomic_write(path) as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream,
    ):
        yield stream


__all__ = [
    "escape_controls",
    "escape_formula",
    "escape_unprintable",
    "open_output",
    "refuse_existing",
    "silence_closed_streams",
]
