# SPDX-License-Identifier: BSD-3-Clause
"""Two processes with FSDP2, one shard for each layer and one for the rest, compute what one process computes."""

import pytest
import torch
from torch.testing import assert_close

from blip_hf import BlipForConditionalGeneration, BlipForQuestionAnswering
from tests.support.ranks import WORLD_SIZE, run_on_ranks
from tests.support.tiny_models import DEC, SUMMATION_TOLERANCE, tiny_batch, tiny_config


# `test_data_parallel.py` shards all heads.
HEADS = {
    "captioner": BlipForConditionalGeneration,
    "checkpointed captioner": BlipForConditionalGeneration,
    "vqa": BlipForQuestionAnswering,
}


def make_model(name):
    torch.manual_seed(0)
    model = HEADS[name](tiny_config()).train()
    if name.startswith("checkpointed"):
        model.activation_checkpointing_enable()
    return model


def make_batch(name):
    """Four records of equal lengths, so that the loss is the mean of those of both processes."""
    batch = tiny_batch((6,) * 4, first=DEC if "captioner" in name else 2)
    return batch | {"labels": batch["input_ids"]}


def shard(model, mesh):
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    layers = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
    scalars = {parameter for parameter in model.parameters() if parameter.dim() == 0}  # FSDP2 refuses to shard them
    for module in (*layers, model):
        fully_shard(module, mesh=mesh, ignored_params=scalars)
    if model.can_generate():
        register_fsdp_forward_method(model, "generate")
    return model


def learn(model, batch):
    loss = model(**batch).loss
    loss.backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {"loss": loss.detach(), "gradients": gradients}


def generate(model, batch):
    inputs = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    return model.eval().generate(**inputs, num_beams=2, max_new_tokens=5, min_new_tokens=5)


def run_rank(rank, folder):
    mesh, results = torch.distributed.init_device_mesh("cpu", (WORLD_SIZE,)), {}
    for name in HEADS:
        model = shard(make_model(name), mesh)
        own = {key: value.chunk(WORLD_SIZE)[rank] for key, value in make_batch(name).items()}
        results[name] = learn(model, own)
        gradients = results[name]["gradients"]
        results[name]["gradients"] = {
            key: value.full_tensor() if hasattr(value, "full_tensor") else value for key, value in gradients.items()
        }
        if name in ("captioner", "vqa"):
            results[name]["sequences"] = generate(model, own)
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    pytest.importorskip("torch.distributed.fsdp")
    return run_on_ranks(run_rank, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", HEADS)
def test_loss_and_gradients_equal_those_of_one_process(ranks, name):
    expected = learn(make_model(name), make_batch(name))
    assert_close(torch.stack([results[name]["loss"] for results in ranks]).mean(), expected["loss"])
    for results in ranks:
        assert_close(results[name]["gradients"], expected["gradients"], **SUMMATION_TOLERANCE)


@pytest.mark.parametrize("name", ["captioner", "vqa"])
def test_generated_tokens_equal_those_of_one_process(ranks, name):
    expected = generate(make_model(name), make_batch(name))
    assert torch.equal(torch.cat([results[name]["sequences"] for results in ranks]), expected)
