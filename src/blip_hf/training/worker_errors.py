# SPDX-License-Identifier: BSD-3-Clause
"""Errors of loader workers, in one line each."""

from collections.abc import Iterator
from contextlib import contextmanager


_RAISED = "Caught "  # how torch starts the message of an exception in a worker, which contains its traceback
_DIED = "DataLoader worker (pid"


class DeadWorkerError(OSError):
    """Raised if a loader worker was killed or exited."""


@contextmanager
def worker_errors() -> Iterator[None]:
    """Raises the exception of a loader worker without the traceback in its text, and names the signal that killed one."""
    try:
        yield
    except (ValueError, OSError) as error:
        if not str(error).startswith(_RAISED):
            raise
        raise type(error)(_message(str(error))) from error
    except RuntimeError as error:
        if not str(error).startswith(_DIED):
            raise
        raise DeadWorkerError(
            f"{_death(error)}. The kernel kills processes if memory runs out: lower dataloader_num_workers, the batch size or"
            " the stream's buffer, and resume from the last checkpoint."
        ) from error


def _death(error: BaseException) -> str:
    """How a worker died, which is in the first error of the chain that names a worker."""
    while error.__cause__ is not None and str(error.__cause__).startswith(_DIED):
        error = error.__cause__
    return str(error).partition(". ")[0].strip().rstrip(".")


def _message(text: str) -> str:
    """The message behind the traceback."""
    last = text.strip().rpartition("\n")[2]
    return last.partition(": ")[2] or last


__all__ = ["DeadWorkerError", "worker_errors"]
