# SPDX-License-Identifier: BSD-3-Clause
"""A loader worker that dies or raises ends the run with its reason, for streams and for data sets with random access."""

import os
import re
import signal

import pytest
from torch.utils.data import DataLoader

from blip_hf.data.pairs import PairDataset
from blip_hf.data.streams import PairStream
from blip_hf.training.streaming import make_stream_loader
from blip_hf.training.worker_errors import worker_errors
from tests.support.forkserver import run_apart
from tests.support.streams import numbered_shards
from tests.support.trainers import make_arguments, make_records


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    os._exit(3)


def fail():
    raise ValueError("the disk of shard 7 is gone")


def make_loader(folder, kind, transform):
    if kind == "stream":
        arguments = make_arguments(folder, dataloader_num_workers=1)
        return make_stream_loader(PairStream(numbered_shards([200]), transform), len, arguments, 4)
    pairs = PairDataset(make_records(10) * 20, transform)
    return DataLoader(pairs, batch_size=4, num_workers=1, collate_fn=len)


def error_of_worker(folder, kind, end):
    """Reads records by a worker that ends at the 90th, and returns the error."""
    num_read = 0

    def transform(image, caption, rng):
        nonlocal num_read
        num_read += 1
        if num_read == 90:
            end()
        return image, caption

    try:
        with worker_errors():
            return f"read {sum(make_loader(folder, kind, transform))} records"
    except Exception as error:
        return f"{type(error).__name__} {error}"


def errors_of_workers(folder, kind):
    return [error_of_worker(folder, kind, end) for end in (kill, leave, fail)]


@pytest.mark.parametrize("kind", ["stream", "records"])
def test_dead_worker_ends_the_run_with_its_reason(tmp_path, kind):
    # Apart, because PyTorch's handler of dead workers stays in the process.
    killed, left, failed = run_apart(errors_of_workers, tmp_path, kind)

    assert re.fullmatch(
        r"DeadWorkerError DataLoader worker .* is killed by signal: Killed\. .* memory runs out.*", killed
    )
    assert re.fullmatch(r"DeadWorkerError DataLoader worker .* exited unexpectedly.*", left)
    assert failed == "ValueError the disk of shard 7 is gone"
