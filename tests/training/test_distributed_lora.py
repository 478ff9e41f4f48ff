# SPDX-License-Identifier: BSD-3-Clause
"""Adapters of LoRA train on two processes with DDP as on one, also after resuming; FSDP2 refuses them."""

import pytest
import torch
from torch.testing import assert_close

from blip_hf import BlipForRetrievalTraining
from blip_hf.tasks.lora import LoraOptions, add_adapters
from tests.support.ranks import WORLD_SIZE, run_on_ranks
from tests.support.tiny_models import SUMMATION_TOLERANCE, tiny_retrieval_config
from tests.support.trainers import FSDP2, TensorPairs, make_model, make_trainer


pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",  # peft 0.21 reads the older name
    "ignore:Could not find a config file in base",  # the base model has no folder
)

NUM_STEPS, SAVED_STEP, GLOBAL_BATCH = 3, 1, 4


def make_adapted():
    torch.manual_seed(0)
    model = BlipForRetrievalTraining(tiny_retrieval_config(negative_all_rank=True))
    return add_adapters(model, LoraOptions(lora=True, lora_dropout=0.0), base="base", modules_to_save=["itm_head"])


def train(folder, world_size, resume_from=None):
    """Trains on the same global batches, whatever the number of processes; returns the trained weights."""
    trainer = make_trainer(
        folder,
        make_adapted(),
        TensorPairs(12),
        max_steps=NUM_STEPS,
        per_device_train_batch_size=GLOBAL_BATCH // world_size,
        save_strategy="steps",
        save_steps=SAVED_STEP,
        train_sampling_strategy="sequential",
        adam_epsilon=1e-3,
        learning_rate=1e-2,
    )
    trainer.train(resume_from_checkpoint=resume_from)
    state = trainer.model.state_dict()
    losses = [log["loss"] for log in trainer.state.log_history if "loss_itc" in log]
    return {"losses": losses, "state": {name: value.clone() for name, value in state.items()}}


def refusal(folder, model, **fields):
    try:
        make_trainer(folder, model, **fields)
    except ValueError as error:
        return str(error)
    return "accepted"


def run(rank, folder):
    whole = {"fsdp": True, "fsdp_config": {**FSDP2["fsdp_config"], "state_dict_type": "FULL_STATE_DICT"}}
    return {
        "fresh": train(folder / "two", WORLD_SIZE),
        "resumed": train(folder / "again", WORLD_SIZE, folder / f"two/checkpoint-{SAVED_STEP}"),
        "lora": refusal(folder, make_adapted(), **FSDP2),
        "whole": refusal(folder, make_model(), **whole),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_on_ranks(run, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", ["fresh", "resumed"])
def test_two_processes_train_the_adapters_of_one(ranks, tmp_path, name):
    expected = train(tmp_path, 1)
    for rank in ranks:
        assert_close(rank[name], expected, **SUMMATION_TOLERANCE)


def test_what_fsdp2_cannot_save_is_refused_before_training(ranks):
    for rank in ranks:
        assert "LoRA does not train with FSDP2" in rank["lora"]
        assert "fsdp_state_dict_type is FULL_STATE_DICT" in rank["whole"]
        assert "Set it to SHARDED_STATE_DICT" in rank["whole"]
