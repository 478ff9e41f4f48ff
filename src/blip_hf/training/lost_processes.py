# SPDX-License-Identifier: BSD-3-Clause
"""Names the processes that died or hang, when a collective operation of the others fails."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch import distributed

from ..distributed import rank, world_size


# Processes notice a failure at different times, at most the length of a step apart.
_WAIT_SECONDS = 5.0


class LostProcessError(ConnectionError):
    """Other processes of a run died or do not answer."""


@contextmanager
def naming_lost_processes(timeout_seconds: float) -> Iterator[None]:
    """Turns the failure of a collective operation into an error that names the processes which did not report it too.

    Each process that sees the failure says so in the store of the launcher. gloo raises such errors; NCCL ends the process
    with its own message.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not is_collective_error(error):
            raise
        lost = _processes_without_report()
        if not lost:
            raise
        raise LostProcessError(
            f"Lost {' and '.join(f'process {number}' for number in lost)} of {world_size()}, seen by process {rank()}: a"
            f" collective operation failed or got no answer for {timeout_seconds:g} seconds (`--ddp_timeout`). See the"
            " output of the lost process for its error; if there is none, it was killed, stopped or hangs."
        ) from error


def is_collective_error(error: RuntimeError) -> bool:
    """Whether a collective operation failed, as it does if another process dies."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def _processes_without_report() -> list[int]:
    """Reports that this process is alive, waits for the others, and returns those that did not."""
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    keys = [f"blip_hf/alive/{attempt}/{number}" for number in range(world_size())]
    try:
        store = distributed.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=10)
        )
        store.set(keys[rank()], "1")
        end = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < end and not store.check(keys):
            time.sleep(0.1)
        return [number for number, key in enumerate(keys) if not store.check([key])]
    except (KeyError, distributed.DistError):
        return []  # the store was lost too


__all__ = ["LostProcessError", "is_collective_error", "naming_lost_processes"]
