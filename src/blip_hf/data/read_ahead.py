# SPDX-License-Identifier: BSD-3-Clause
"""Reads items before they are needed, in threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def read_ahead(
    items: Iterable[_Item], read: Callable[[_Item], _Result], *, num_workers: int, depth: int
) -> Iterator[_Result]:
    """Maps `read` over items in order, with threads that are at most `depth` items ahead.

    Threads suffice for images: Pillow and NumPy release the interpreter lock, and no pixels are copied between processes.
    An error of `read` is raised in the place of its item.

    Example:
        >>> list(read_ahead(range(4), lambda number: number**2, num_workers=2, depth=2))
        [0, 1, 4, 9]
    """
    if num_workers < 0:
        raise ValueError(f"num_workers={num_workers} is too small. Pass 0 to read each image when it is needed.")
    if num_workers == 0:
        yield from map(read, items)
        return
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="read_ahead")
    pending: deque[Future[_Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(read, item))
            if len(pending) >= depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


__all__ = ["read_ahead"]
