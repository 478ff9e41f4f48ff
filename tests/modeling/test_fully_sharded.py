# SPDX-License-Identifier: BSD-3-Clause
"""Two processes with FSDP2, one shard for each layer and one for the rest, compute what one process computes."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from blip_hf import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipForRetrievalTraining,
    BlipForVisualReasoning,
)
from tests.support.ranks import WORLD_SIZE, run_on_ranks
from tests.support.tiny_models import (
    DEC,
    SUMMATION_TOLERANCE,
    tiny_batch,
    tiny_config,
    tiny_nlvr2_config,
    tiny_retrieval_config,
)


HEADS = {
    "captioner": (BlipForConditionalGeneration, tiny_config),
    "checkpointed captioner": (BlipForConditionalGeneration, tiny_config),
    "vqa": (BlipForQuestionAnswering, tiny_config),
    "itm": (BlipForImageTextRetrieval, tiny_config),
    "nlvr2": (BlipForVisualReasoning, tiny_nlvr2_config),
    "retrieval": (BlipForRetrievalTraining, partial(tiny_retrieval_config, gather_keys=False)),
}


def make_model(name):
    model_class, make_config = HEADS[name]
    torch.manual_seed(0)
    model = model_class(make_config()).train()
    if name.startswith("checkpointed"):
        model.activation_checkpointing_enable()
    return model


def make_batch(name):
    """Four records of equal lengths, so that the loss is the mean of those of both processes."""
    batch = tiny_batch((6,) * 4, first=DEC if "captioner" in name else 2)
    if name == "retrieval":  # the same two pairs in both processes, each other's negatives
        return {key: value[:2].repeat(2, *[1] * (value.dim() - 1)) for key, value in batch.items()}
    if name == "nlvr2":
        batch["pixel_values"] = torch.stack([batch["pixel_values"], batch["pixel_values"].flip(0)], dim=1)
    labels = {"itm": torch.tensor([1, 0, 0, 1]), "nlvr2": torch.tensor([1, 0, 0, 1])}
    return batch | {"labels": labels.get(name, batch["input_ids"])}


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
    batch = make_batch(name)
    if name == "retrieval":
        batch = {key: value[:2] for key, value in batch.items()}
    expected = learn(make_model(name), batch)
    assert_close(torch.stack([results[name]["loss"] for results in ranks]).mean(), expected["loss"])
    for results in ranks:
        assert_close(results[name]["gradients"], expected["gradients"], **SUMMATION_TOLERANCE)


@pytest.mark.parametrize("name", ["captioner", "vqa"])
def test_generated_tokens_equal_those_of_one_process(ranks, name):
    expected = generate(make_model(name), make_batch(name))
    assert torch.equal(torch.cat([results[name]["sequences"] for results in ranks]), expected)
