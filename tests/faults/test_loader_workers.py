# SPDX-License-Identifier: BSD-3-Clause
"""A loader worker that dies or raises ends the run with its reason, for streams and for data sets with random access."""

import re

import pytest

from tests.support.paths import ROOT
from tests.support.processes import run_code


SCRIPT = """
import os, signal, sys
from torch.utils.data import DataLoader
from blip_hf.data.pairs import PairDataset
from blip_hf.data.streams import PairStream
from blip_hf.training.streaming import make_stream_loader
from blip_hf.training.worker_errors import worker_errors
from tests.support.streams import numbered_shards
from tests.support.trainers import make_arguments, make_records

def kill(): os.kill(os.getpid(), signal.SIGKILL)
def leave(): os._exit(3)
def fail(): raise ValueError("the disk of shard 7 is gone")

for end in (kill, leave, fail):
    number = [0]
    def transform(image, caption, rng):
        number[0] += 1
        if number[0] == 90:
            end()
        return image, caption

    if sys.argv[2] == "stream":
        arguments = make_arguments(sys.argv[1], dataloader_num_workers=1)
        loader = make_stream_loader(PairStream(numbered_shards([200]), transform), len, arguments, 4)
    else:
        pairs = PairDataset(make_records(10) * 20, transform)
        loader = DataLoader(pairs, batch_size=4, num_workers=1, collate_fn=len)
    try:
        with worker_errors():
            print(sum(loader))
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize("kind", ["stream", "records"])
def test_dead_worker_ends_the_run_with_its_reason(tmp_path, kind):
    killed, left, failed = run_code(SCRIPT, tmp_path, kind, PYTHONPATH=f"{ROOT / 'src'}:{ROOT}").splitlines()

    assert re.fullmatch(
        r"DeadWorkerError DataLoader worker .* is killed by signal: Killed\. .* memory runs out.*", killed
    )
    assert re.fullmatch(r"DeadWorkerError DataLoader worker .* exited unexpectedly.*", left)
    assert failed == "ValueError the disk of shard 7 is gone"
