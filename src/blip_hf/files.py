# SPDX-License-Identifier: BSD-3-Clause
"""Atomic writes: files and folders are written under a temporary name, flushed to disk, then renamed."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class DiskFullError(OSError):
    """The disk is too full for a file or folder.

    Args:
        path (`str` or `os.PathLike`):
            The file or folder.
        needed (`str`):
            How much it takes, such as "12 bytes".
        advice (`str`, *optional*):
            What to do; by default to free space and to repeat the command.
    """

    def __init__(self, path: str | os.PathLike[str], needed: str, advice: str | None = None) -> None:
        free = free_bytes(path)
        super().__init__(
            f"No space left on the disk of {path}: it needs {needed}, and {free:,} bytes are free."
            f" {advice or 'Free some space and run the same command again.'}"
        )


def free_bytes(path: str | os.PathLike[str]) -> int:
    """Returns the free bytes on the disk of a path, which need not exist."""
    folder = next(parent for parent in (Path(path).absolute(), *Path(path).absolute().parents) if parent.is_dir())
    return shutil.disk_usage(folder).free


def is_disk_full(error: BaseException | None) -> bool:
    """Returns whether an error, or its cause, says that a disk or a quota is full."""
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # Of safetensors, pyarrow and torch, whose errors have no `errno`.
    says_so = "No space left on device" in str(error) or "os error 28" in str(error)
    return says_so or is_disk_full(error.__cause__ or error.__context__)


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path for a file or folder, which is renamed to `path` if the block raises nothing.

    The parent folder of `path` is created. The content is on the disk before the rename, so a loss of power leaves either
    the old content or the new one.

    Raises:
        DiskFullError: If the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_write(Path(folder, "a.txt")) as path:
        ...         _ = path.write_text("whole")
        ...     Path(folder, "a.txt").read_text()
        'whole'
    """
    path = Path(path)
    # With the process id, two processes can write the same path.
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        flush_to_disk(beside)
        beside.replace(path)
        flush_to_disk(path.parent, contents=False)
    except Exception as error:
        if is_disk_full(error) and not isinstance(error, DiskFullError):
            raise DiskFullError(path, f"more than {size_of(beside):,} bytes") from error
        raise
    finally:
        _remove(beside)


def flush_to_disk(path: Path, *, contents: bool = True) -> None:
    """Waits until a file is on the disk, or a folder, by default with all files inside."""
    if path.is_dir():
        if contents:
            for entry in path.iterdir():
                flush_to_disk(entry)
        if os.name == "nt":
            return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def size_of(path: Path) -> int:
    """Returns the bytes of a file, or of all files in a folder; 0 if there is none."""
    if path.is_dir():
        return sum(size_of(entry) for entry in path.iterdir())
    return path.stat().st_size if path.is_file() else 0


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


def write_json(content: Any, path: str | os.PathLike[str], **options: Any) -> None:
    """Writes a JSON file atomically; NaN and infinity, which JSON lacks, become `null`."""
    with atomic_write(path) as beside:
        beside.write_text(format_json(content, **options), encoding="utf-8")


def format_json(content: Any, **options: Any) -> str:
    """Like `json.dumps`, with `null` for NaN and infinity, which JSON lacks.

    Example:
        >>> format_json({"loss": float("nan"), "steps": 3})
        '{"loss": null, "steps": 3}'
    """
    return json.dumps(_without_nan(content), allow_nan=False, **options)


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def file_digest(path: Path) -> str:
    """Hashes the content of a file to 16 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


__all__ = [
    "DiskFullError",
    "atomic_write",
    "file_digest",
    "flush_to_disk",
    "format_json",
    "free_bytes",
    "is_disk_full",
    "remove_partial",
    "size_of",
    "write_json",
]
