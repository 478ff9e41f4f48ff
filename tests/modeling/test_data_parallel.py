# SPDX-License-Identifier: BSD-3-Clause
"""Several processes, with DDP or FSDP2, compute the losses and gradients of one process on the same global batch."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from blip_hf import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForPreTraining,
    BlipForQuestionAnswering,
    BlipForRetrievalTraining,
    BlipForVisualReasoning,
)
from blip_hf.distributed import world_size
from blip_hf.training.sharding import shard_model
from tests.support.ranks import run_on_ranks
from tests.support.tiny_models import (
    DEC,
    SUMMATION_TOLERANCE,
    seeded_generator,
    tiny_batch,
    tiny_config,
    tiny_nlvr2_config,
    tiny_pretraining_config,
    tiny_retrieval_config,
)


ALL_RANKS = {"negative_all_rank": True}
HEADS = {
    "captioner": (BlipForConditionalGeneration, tiny_config, {}),
    "vqa": (BlipForQuestionAnswering, tiny_config, {}),
    "nlvr2": (BlipForVisualReasoning, tiny_nlvr2_config, {}),
    "itm": (BlipForImageTextRetrieval, tiny_config, {}),
    "retrieval": (BlipForRetrievalTraining, tiny_retrieval_config, ALL_RANKS),
    "pretraining": (BlipForPreTraining, tiny_pretraining_config, ALL_RANKS),
    "easy negatives": (BlipForPreTraining, tiny_pretraining_config, ALL_RANKS | {"negative_temperature": 1.0}),
    "no momentum": (BlipForPreTraining, tiny_pretraining_config, ALL_RANKS | {"momentum": 0.0}),
}
CONTRASTIVE = ("retrieval", "pretraining", "easy negatives", "no momentum")
# The keys of one process, with its own negatives, as salesforce/BLIP: not equal to one process.
LOCAL = {"gather_keys": False, "negative_all_rank": False}
WRAPPERS = {"ddp": DistributedDataParallel, "fsdp2": shard_model}
# Two heads are pre-training with other draws or without a momentum encoder, which FSDP2 shards as pre-training.
ONLY_DDP = ("easy negatives", "no momentum")
RUNS = [(name, wrapper) for name in HEADS for wrapper in WRAPPERS if wrapper == "ddp" or name not in ONLY_DDP]
LENGTHS = (7, 4, 5, 6, 3, 7, 4, 5)
LOSSES = ("loss", "loss_itc", "loss_itm", "loss_lm")
LEARNING_RATE, NUM_STEPS = 0.02, 2


def make_model(name, **fields):
    model_class, make_config, defaults = HEADS[name]
    torch.manual_seed(0)
    model = model_class(make_config(**{**defaults, **fields})).train()
    if name == "itm":  # DDP waits for gradients of the projections, which are unused
        model.vision_proj.requires_grad_(False)
        model.text_proj.requires_grad_(False)
    return model


def make_batch(name, step):
    """The global batch: texts of different lengths, and for the contrast two captions of one image, rows 1 and 6."""
    batch = tiny_batch(LENGTHS, first=DEC if name == "captioner" else 2, seed=step)
    if name in CONTRASTIVE:
        image_ids = 8 * step + torch.arange(8)
        image_ids[6] = image_ids[1]
        return batch | {"image_ids": image_ids}
    if name == "captioner":
        return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}
    if name == "vqa":
        answers = tiny_batch(LENGTHS[::-1], first=DEC, seed=10 + step)
        labels = answers["input_ids"].masked_fill(answers["attention_mask"] == 0, -100)
        return batch | {"labels": labels, "answer_weights": torch.linspace(0.2, 1.0, 8)}
    batch["labels"] = torch.tensor([1, 0, 0, 1, 0, 1, 1, 1])
    if name == "itm":
        return batch
    return batch | {"pixel_values": torch.stack([batch["pixel_values"], batch["pixel_values"].flip(0)], dim=1)}


def own_part(name, batch, rank):
    """The rows of one process; in the contrast, processes have different numbers of pairs."""
    if name not in CONTRASTIVE:
        return {key: value.chunk(world_size())[rank] for key, value in batch.items()}
    sizes = {1: [8], 2: [5, 3], 4: [3, 1, 2, 2]}[world_size()]
    part = {key: value.split(sizes)[rank] for key, value in batch.items()}
    longest = part["attention_mask"].sum(dim=1).max()
    return part | {key: part[key][:, :longest] for key in ("input_ids", "attention_mask")}


def extra_arguments(name, batch, step):
    """Arguments that all processes share: the draws of negatives, or the tokens of a step as Trainer counts them."""
    if name == "captioner":
        return {"num_items_in_batch": (batch["labels"][:, 1:] != -100).sum() / world_size()}
    return {"generator": seeded_generator(step)} if name in CONTRASTIVE else {}


def full(value):
    return value.full_tensor() if hasattr(value, "full_tensor") else value.clone()


def train(name, wrap, rank=0, **fields):
    """Losses, gradients and changes of state in two steps of plain gradient descent."""
    model = make_model(name, **fields)
    wrapped, steps = wrap(model), []
    for step in range(NUM_STEPS):
        batch = make_batch(name, step)
        extra = extra_arguments(name, batch, step)
        output = wrapped(**own_part(name, batch, rank), **extra)
        output.loss.backward()
        losses = {key: output[key].detach() for key in LOSSES if output.get(key) is not None}
        gradients = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
        steps.append({"losses": losses, "gradients": {key: full(value) for key, value in gradients.items()}})
        with torch.no_grad():
            for value in model.parameters():
                if value.grad is not None:
                    value -= LEARNING_RATE * value.grad
                    value.grad = None
        if name in CONTRASTIVE:
            model.enqueue(output)
            model.update_momentum()
    state = {key: full(value) for key, value in model.state_dict().items()}
    return {"steps": steps, "state": state}


def train_all(rank, folder):
    runs = {(name, wrapper): train(name, WRAPPERS[wrapper], rank) for name, wrapper in RUNS}
    for name in ("retrieval", "pretraining"):
        for wrapper, wrap in WRAPPERS.items():
            runs[name, wrapper, "local"] = train(name, wrap, rank, **LOCAL)
    return runs


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def ranks(request, tmp_path_factory):
    """Results of two or four processes."""
    return run_on_ranks(train_all, tmp_path_factory.mktemp("ranks"), request.param)


@pytest.fixture(scope="module")
def single():
    """Results of one process."""
    return {name: train(name, lambda model: model) for name in HEADS}


def mean_losses(results, step):
    losses = [result["steps"][step]["losses"] for result in results]
    return {name: torch.stack([part[name] for part in losses]).mean() for name in losses[0]}


@pytest.mark.parametrize(("name", "wrapper"), RUNS)
def test_processes_equal_one_process(ranks, single, name, wrapper):
    results = [rank[name, wrapper] for rank in ranks]
    for step, expected in enumerate(single[name]["steps"]):
        assert_close(mean_losses(results, step), expected["losses"], **SUMMATION_TOLERANCE)
        for result in results:
            assert_close(result["steps"][step]["gradients"], expected["gradients"], **SUMMATION_TOLERANCE)
    for result in results:
        assert_close(result["state"], single[name]["state"], **SUMMATION_TOLERANCE)


@pytest.mark.parametrize("name", ["retrieval", "pretraining"])
def test_keys_of_one_process_contrast_with_fewer_pairs(ranks, single, name):
    local = mean_losses([rank[name, "ddp", "local"] for rank in ranks], 0)["loss_itc"]
    assert local < single[name]["steps"][0]["losses"]["loss_itc"] - 0.05
    for rank in ranks:
        assert_close(rank[name, "fsdp2", "local"], rank[name, "ddp", "local"], **SUMMATION_TOLERANCE)
