# SPDX-License-Identifier: BSD-3-Clause
"""A process of a training that dies or hangs: the others end and name it, and the run continues from its last checkpoint."""

import time

import pytest

from tests.support.interrupted_training import SIGNAL_TIME_NAME, TIMEOUT_SECONDS
from tests.support.processes import run_python


pytestmark = pytest.mark.slow


def train(folder, *signal_names, wrapper="ddp", max_restarts=0):
    """Trains with two processes; returns the result and the seconds from the signal to the end."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", f"--max_restarts={max_restarts}")
    result = run_python(
        *launcher, "-m", "tests.support.interrupted_training", folder, wrapper, *signal_names, OMP_NUM_THREADS="1"
    )
    sent = folder / SIGNAL_TIME_NAME
    return result, time.time() - float(sent.read_text()) if sent.exists() else None


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_a_restarted_run_ends_bit_equal(wrapper, tmp_path):
    whole, _ = train(tmp_path / "whole", wrapper=wrapper)
    assert whole.returncode == 0, whole.stderr
    restarted, _ = train(tmp_path / "restarted", "SIGKILL", wrapper=wrapper, max_restarts=1)
    assert restarted.returncode == 0, restarted.stderr
    assert "exitcode: -9" in restarted.stderr
    first, second = (tmp_path / name / "model.safetensors" for name in ("whole", "restarted"))
    assert first.read_bytes() == second.read_bytes()


def test_a_dead_process_ends_the_others_and_is_named(tmp_path):
    result, seconds = train(tmp_path / "run", "SIGKILL")
    assert result.returncode == 1
    assert "rank      : 1 (local_rank: 1)\n  exitcode  : -9" in result.stderr
    assert seconds < 60


def test_a_stopped_process_ends_the_others_and_is_named(tmp_path):
    # torchrun kills a process 30 seconds after a signal that it does not answer.
    result, seconds = train(tmp_path / "run", "SIGSTOP")
    assert result.returncode == 1
    assert (
        f"Lost process 1 of 2, seen by process 0: a collective operation failed or got no answer for {TIMEOUT_SECONDS}"
        in result.stderr
    )
    assert seconds < TIMEOUT_SECONDS + 60
