# SPDX-License-Identifier: BSD-3-Clause
"""Atomic writes: files and folders are written under a temporary name, then renamed."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path for a file or folder, which is renamed to `path` if the block raises nothing.

    The parent folder of `path` is created.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_write(Path(folder, "a.txt")) as path:
        ...         _ = path.write_text("whole")
        ...     Path(folder, "a.txt").read_text()
        'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # With the process id, two processes can write the same path.
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield beside
        beside.replace(path)
    finally:
        _remove(beside)


def remove_partial(path: str | os.PathLike[str]) -> None:
    """Removes temporary files of killed processes for `path`. No process may be writing it."""
    path = Path(path)
    if path.parent.is_dir():
        for beside in path.parent.iterdir():
            if re.fullmatch(re.escape(path.name) + r"\.\d+\.part", beside.name):
                _remove(beside)


def _remove(beside: Path) -> None:
    if beside.is_dir():
        shutil.rmtree(beside)
    beside.unlink(missing_ok=True)


def write_json(content: Any, path: str | os.PathLike[str]) -> None:
    """Writes a JSON file atomically."""
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(content), encoding="utf-8")


def file_digest(path: Path) -> str:
    """Hashes the content of a file to 16 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


__all__ = ["atomic_write", "file_digest", "remove_partial", "write_json"]
