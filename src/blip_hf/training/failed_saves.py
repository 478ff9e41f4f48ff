# SPDX-License-Identifier: BSD-3-Clause
"""A checkpoint that one process cannot save ends all of them with its error; otherwise they would wait for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.distributed.checkpoint import CheckpointException

from ..distributed import gather_objects, rank, world_size
from ..files import DiskFullError
from ..finite import NotFiniteError
from .lost_processes import is_collective_error


# Their messages say what to do.
_WITH_ADVICE = (DiskFullError, NotFiniteError)


class FailedSaveError(OSError):
    """A checkpoint that a process could not write."""


@contextmanager
def failing_together(checkpoint: Path) -> Iterator[None]:
    """Waits for the block on all processes, and raises on each of them if it failed on one.

    Raises:
        FailedSaveError: With the number of the process that failed, and its error.
    """
    failure, cause = None, None
    try:
        yield
    except (
        CheckpointException
    ) as error:  # torch.distributed.checkpoint raises it on all processes, and not as an `Exception`
        number, (cause, _) = next(iter(error.failures.items()))
        failure = (number, _describe(cause))
    except Exception as error:
        if world_size() == 1 or (isinstance(error, RuntimeError) and is_collective_error(error)):
            raise
        failure, cause = (rank(), _describe(error)), error
    failures = [found for found in gather_objects([failure]) if found is not None]
    if isinstance(cause, _WITH_ADVICE):
        raise cause
    if failures:
        number, reason = failures[0]
        raise FailedSaveError(f"Process {number} of {world_size()} could not save {checkpoint}: {reason}") from cause


def _describe(error: BaseException) -> str:
    """The message of an error in one line, and what to do."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, _WITH_ADVICE):
        return text
    return (
        f"{text.removesuffix('.')}. The checkpoints before it are kept. Remove the cause and run the same command again to"
        " resume from the last one."
    )


__all__ = ["FailedSaveError", "failing_together"]
