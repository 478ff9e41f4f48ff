# SPDX-License-Identifier: BSD-3-Clause
"""Several processes on the CPU, for tests of distributed runs."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing

from tests.support.forkserver import forkserver


WORLD_SIZE = 2


def run_on_ranks(
    run: Callable[[int, Path], dict[str, Any]], folder: Path, world_size: int = WORLD_SIZE
) -> list[dict[str, Any]]:
    """Returns the results of `run(rank, folder)` on several processes with one thread each."""
    if not distributed.is_available():
        pytest.skip("this build of torch has no torch.distributed")
    arguments = (run, folder, world_size)
    start_method = forkserver().get_start_method()
    multiprocessing.start_processes(_run_rank, args=arguments, nprocs=world_size, start_method=start_method)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(world_size)]


def _run_rank(rank: int, run: Callable[[int, Path], dict[str, Any]], folder: Path, world_size: int) -> None:
    torch.set_num_threads(1)
    # As set by a launcher, so that Trainer joins the group instead of creating one.
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "TORCHELASTIC_USE_AGENT_STORE": "False"}
    os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    torch.save(run(rank, folder), folder / f"rank{rank}.pt")
    distributed.destroy_process_group()
