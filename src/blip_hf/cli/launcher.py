# SPDX-License-Identifier: BSD-3-Clause
"""What a launcher such as `torchrun` says about this process."""

import os


# Of torchrun, and of the MPI that `accelerate launch` uses on CPUs.
_INDEX_VARIABLES = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_COUNT_VARIABLES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def launched_process() -> tuple[int, int]:
    """Index of this process and number of processes; no process group is needed."""
    return _first(_INDEX_VARIABLES, default=0), _first(_COUNT_VARIABLES, default=1)


def _first(names: tuple[str, ...], default: int) -> int:
    return next((int(os.environ[name]) for name in names if name in os.environ), default)


__all__ = ["launched_process"]
