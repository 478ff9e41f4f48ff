# SPDX-License-Identifier: BSD-3-Clause
"""Locks on pieces of work that several processes of one machine share.

The operating system releases a lock when the process that holds it ends, so a killed process blocks nobody.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


class Locks:
    """Named pieces of work, each held by one process at a time. Each piece has a lock file in `folder`.

    Args:
        folder (`Path`):
            Folder of the lock files, which all processes see. The first lock creates it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def hold(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Holds a piece of work within the block.

        Args:
            name (`str`):
                Name of the piece.
            wait (`bool`):
                Whether to wait for a process that holds it.

        Yields:
            `bool`: whether this process holds it; always `True` with `wait`.
        """
        lock = FileLock(self.folder / f"{name}.lock")
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def remove_files(self) -> None:
        """Removes the lock files. Safe only when all work is done, even if other processes still wait for a lock."""
        for path in self.folder.glob("*.lock"):
            # Windows refuses to remove a file that is open.
            with suppress(PermissionError):
                path.unlink(missing_ok=True)


__all__ = ["Locks"]
