# SPDX-License-Identifier: BSD-3-Clause
"""Work that processes share, on one machine or on many: a piece is locked by whoever does it.

The locks are the operating system's. They go with the process that holds them, so nothing is left of one that was killed.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


class Locks:
    """Numbered pieces of work, each of which one process at a time may claim. Within a process nothing is refused.

    Args:
        file (binary file):
            The open file that all processes lock parts of, on a file system that all of them see.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    @contextmanager
    def claim(self, number: int, *, wait: bool) -> Iterator[bool]:
        """Holds a piece of work within the block.

        Args:
            number (`int`):
                Which one, from 0.
            wait (`bool`):
                Whether to wait for another process that holds it.

        Yields:
            `bool`: whether it is held, which it always is after waiting.
        """
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, number)
        except (BlockingIOError, PermissionError):  # which of them, the system decides
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)


@contextmanager
def open_locks(path: Path) -> Iterator[Locks]:
    """Opens the file of claims, and makes it and its folder where there is none.

    Args:
        path (`Path`):
            The file. It stays empty.

    Yields:
        `Claims`: until the block ends. A process opens the same file once at a time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        yield Locks(file)


__all__ = ["Locks", "open_locks"]
