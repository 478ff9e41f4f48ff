# SPDX-License-Identifier: BSD-3-Clause
"""SIGINT (Ctrl-C) and SIGTERM as one exception, so that a command can say how far it came."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


class Stopped(KeyboardInterrupt):
    """The process was asked to stop. `status` is its exit status, as in a shell: 130 for SIGINT, 143 for SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


@contextmanager
def stop_signals() -> Iterator[None]:
    """Raises [`Stopped`] within the block on SIGINT and SIGTERM, unless the parent process ignores them (`nohup`)."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, _stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stop(number: int, frame: Any) -> NoReturn:
    raise Stopped(number)


__all__ = ["Stopped", "stop_signals"]
