# SPDX-License-Identifier: BSD-3-Clause
"""A checkpoint that one of two processes cannot save ends both with its error, and the last good one is kept."""

import errno
import os
from unittest.mock import patch

import pytest
from torch.distributed.checkpoint.filesystem import FileSystem

from blip_hf.training import BlipContrastiveTrainer
from blip_hf.training.checkpoint_files import newest_whole
from tests.support.ranks import run_on_ranks
from tests.support.trainers import FSDP2, make_model, make_trainer


FAILING_STEP, FAILING_RANK = 2, 1
# Time-out of collective operations, longer than the test.
TIMEOUT_SECONDS = 600


def message_of_failure(folder, **fields):
    trainer = make_trainer(
        folder,
        make_model(),
        per_device_train_batch_size=2,
        max_steps=3,
        save_strategy="steps",
        save_steps=1,
        ddp_timeout=TIMEOUT_SECONDS,
        **fields,
    )
    try:
        trainer.train()
    except OSError as error:
        return str(error)
    return "saved"


def failing(method, owner, number, is_file):
    """Replaces a method that writes a file by one that fails with error `number` if `is_file(path)`."""
    write = getattr(owner, method)

    def fail(self, path, *args):
        if is_file(str(path)) and f"checkpoint-{FAILING_STEP}" in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return write(self, path, *args)

    return patch.object(owner, method, fail)


def fail_to_save(rank, folder):
    messages = {}
    is_own = rank == FAILING_RANK
    for name, number in (("permission", errno.EACCES), ("disk", errno.ENOSPC)):
        with failing("_save_rng_state", BlipContrastiveTrainer, number, lambda path: is_own):
            messages[name] = message_of_failure(folder / name)
    with failing("create_stream", FileSystem, errno.EIO, lambda path: f"__{FAILING_RANK}_0" in path):
        messages["shard"] = message_of_failure(folder / "shard", **FSDP2)
    return messages


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder, run_on_ranks(fail_to_save, folder)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("permission", "Permission denied: '{run}/.saving/checkpoint-2"),
        ("disk", "No space left on the disk of {run}/checkpoint-2: it needs about "),
        ("shard", "Input/output error: '{run}/.saving/checkpoint-2/pytorch_model_fsdp_0/__1_0.distcp'."),
    ],
)
def test_all_processes_end_with_the_error_of_the_one_that_failed(runs, name, reason):
    folder, ranks = runs
    run = folder / name
    for rank, messages in enumerate(ranks):
        assert reason.format(run=run) in messages[name]
        if name != "disk" or rank != FAILING_RANK:  # whose own error names the path
            assert messages[name].startswith(f"Process 1 of 2 could not save {run}/checkpoint-2: ")
    assert newest_whole(run) == run / "checkpoint-1"
    assert not (run / ".saving").exists()
