# SPDX-License-Identifier: BSD-3-Clause
"""Training with FSDP2 on two processes ends as on one process, also if it resumes with another number of processes."""

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from blip_hf import BlipForPreTraining
from tests.support.ranks import WORLD_SIZE, run_on_ranks
from tests.support.tiny_models import SUMMATION_TOLERANCE
from tests.support.trainers import FSDP2, TensorPairs, make_model, make_trainer


NUM_STEPS, SAVED_STEP, GLOBAL_BATCH = 4, 2, 4


def train(folder, world_size, resume_from=None, **fields):
    """Trains on the same global batches, whatever the number of processes; returns the loss of each step."""
    torch.manual_seed(0)
    trainer = make_trainer(
        folder,
        make_model(negative_all_rank=True),
        TensorPairs(16),
        max_steps=NUM_STEPS,
        per_device_train_batch_size=GLOBAL_BATCH // world_size,
        save_strategy="steps",
        save_steps=SAVED_STEP,
        train_sampling_strategy="sequential",
        adam_epsilon=1e-3,  # a small one would turn the rounding of a gradient of zero into a step
        learning_rate=1e-3,
        **fields,
    )
    trainer.train(resume_from_checkpoint=resume_from)
    trainer.save_model()
    names = ("loss", "loss_itc", "loss_itm", "loss_lm", "grad_norm", "temperature")
    return [{name: log[name] for name in names} for log in trainer.state.log_history if "loss_itc" in log]


def train_sharded(rank, folder):
    return {
        "fresh": train(folder / "two", WORLD_SIZE, **FSDP2),
        "resumed": train(folder / "two again", WORLD_SIZE, folder / f"two/checkpoint-{SAVED_STEP}", **FSDP2),
        "from one": train(folder / "one to two", WORLD_SIZE, folder / f"one/checkpoint-{SAVED_STEP}", **FSDP2),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def expected(folder):
    """Losses of one process."""
    return train(folder / "one", 1)


@pytest.fixture(scope="module")
def ranks(folder, expected):
    return run_on_ranks(train_sharded, folder)


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("run", ["two", "two again", "one to two"])
def test_two_sharded_processes_end_as_one(folder, ranks, run):
    assert_close(weights(folder / run), weights(folder / "one"), **SUMMATION_TOLERANCE)


def test_losses_equal_those_of_one_process(ranks, expected):
    for rank in ranks:
        assert_close(rank["fresh"], expected, **SUMMATION_TOLERANCE)
        assert_close(rank["resumed"], expected, **SUMMATION_TOLERANCE)


def test_one_process_resumes_from_shards(folder, ranks, expected):
    losses = train(folder / "two to one", 1, folder / f"two/checkpoint-{SAVED_STEP}")
    assert_close(losses, expected, **SUMMATION_TOLERANCE)
    assert_close(weights(folder / "two to one"), weights(folder / "one"), **SUMMATION_TOLERANCE)


def test_the_gathered_model_loads(folder, ranks):
    BlipForPreTraining.from_pretrained(folder / "two")
