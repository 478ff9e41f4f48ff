# SPDX-License-Identifier: BSD-3-Clause
"""Collective operations and objectives on two processes equal one process."""

import pytest
import torch
from torch import distributed
from torch.testing import assert_close

from blip_hf import BlipForRetrievalTraining
from blip_hf.distributed import first_row, gather, gather_with_gradient, pad_to_longest, world_size
from blip_hf.modeling.momentum import FeatureQueue
from tests.support.ranks import WORLD_SIZE, run_on_ranks
from tests.support.tiny_models import PAD, tiny_batch, tiny_retrieval_config


BATCH_SIZE, QUEUE_SIZE, WIDTH, NUM_STEPS = 3, 8, 4, 3


def batch_of(step, rank):
    """Image and text features and image ids of one process in one step."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    images, texts = torch.randn(2, BATCH_SIZE, WIDTH, generator=generator)
    return images, texts, 100 * step + 10 * rank + torch.arange(BATCH_SIZE)


def pairs_of(rank):
    """Pairs of one process, with captions of different lengths. One image is shared between the processes."""
    batch = tiny_batch(lengths=((7, 5, 6), (4, 5, 3))[rank], seed=rank)
    return batch | {"image_ids": torch.tensor(((1, 2, 3), (4, 2, 5))[rank])}


def matching_step(rank, **fields):
    """Matching loss of one process, or of one with all pairs (`rank=None`), with its gradients."""
    torch.manual_seed(0)
    model = BlipForRetrievalTraining(tiny_retrieval_config(**fields))
    if rank is None:
        batches = [pairs_of(rank) for rank in range(WORLD_SIZE)]
        for name, value in (("input_ids", PAD), ("attention_mask", 0)):
            batches[1][name] = torch.nn.functional.pad(batches[1][name], (0, 2), value=value)
        batch = {name: torch.cat([part[name] for part in batches]) for name in batches[0]}
    else:
        batch = pairs_of(rank)
    draw = torch.multinomial
    torch.multinomial = lambda weights, *_, **__: weights.argmax(dim=-1, keepdim=True)
    output = model(**batch)
    torch.multinomial = draw
    output.loss_itm.backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {
        "loss": output.loss_itm.detach(),
        "labels": output.itm_labels,
        "logits": output.itm_logits.detach(),
        "gradients": gradients,
    }


def run_rank(rank, _):
    queue = FeatureQueue(QUEUE_SIZE, WIDTH)
    without_ids = FeatureQueue(QUEUE_SIZE, WIDTH)
    for step in range(NUM_STEPS):
        queue.enqueue(*batch_of(step, rank))
        without_ids.enqueue(*batch_of(step, rank)[:2])
    strided = torch.arange(6).view(2, 3).T + 10 * rank  # not contiguous
    features = torch.ones(2, 2, requires_grad=True)
    uneven = torch.ones(rank + 1, 2, requires_grad=True)
    # Loss of this process: the sum of each gathered row times its number, from 1, times the number of the process.
    ((gather_with_gradient(uneven) * torch.arange(1, 4)[:, None]).sum() * (rank + 1)).backward()
    return {
        "queue": queue.state_dict(),
        "without_ids": without_ids.state_dict(),
        "gathered": gather(strided),
        "uneven": gather(torch.full((rank + 1, 2), rank)),
        "has_gradient": gather(features).requires_grad,
        "gradient": uneven.grad,
        "first_row": first_row(uneven),
        "padded": pad_to_longest(torch.full((1, rank + 1), 7), PAD),
        "all_ranks": matching_step(rank, negative_all_rank=True),
        "own_rank": matching_step(rank, negative_all_rank=False),
        "world_size": world_size(),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Results of two processes after three steps."""
    return run_on_ranks(run_rank, tmp_path_factory.mktemp("distributed"))


def test_gather_concatenates_in_rank_order(ranks):
    own = torch.arange(6).view(2, 3).T
    for rank in ranks:
        assert rank["world_size"] == WORLD_SIZE
        assert torch.equal(rank["gathered"], torch.cat([own, own + 10]))
        assert not rank["has_gradient"]


def test_gather_takes_unequal_numbers_of_rows(ranks):
    for rank in ranks:
        assert rank["uneven"].tolist() == [[0, 0], [1, 1], [1, 1]]


def test_gathered_rows_receive_gradients_from_all_processes(ranks):
    # The gradients of rows 0 | 1, 2 are 1 | 2, 3, times 1 + 2 for the losses of both processes.
    assert ranks[0]["gradient"].tolist() == [[3, 3]]
    assert ranks[1]["gradient"].tolist() == [[6, 6], [9, 9]]
    assert [rank["first_row"] for rank in ranks] == [0, 1]


def test_rows_are_padded_to_the_longest_over_all_processes(ranks):
    assert [rank["padded"].tolist() for rank in ranks] == [[[7, PAD]], [[7, 7]]]


def test_negatives_of_all_ranks_equal_one_process_with_all_pairs(ranks):
    whole = matching_step(None)
    steps = [rank["all_ranks"] for rank in ranks]
    assert_close(sum(step["loss"] for step in steps) / WORLD_SIZE, whole["loss"])
    logits = [step["logits"].split([2 * BATCH_SIZE, BATCH_SIZE]) for step in steps]
    assert_close(torch.cat([torch.cat(part) for part in zip(*logits, strict=True)]), whole["logits"])
    assert all(torch.equal(step["labels"], torch.tensor([1, 0] * BATCH_SIZE + [0] * BATCH_SIZE)) for step in steps)
    assert len(whole["gradients"]) > 60
    for name, expected in whole["gradients"].items():
        mean = sum(step["gradients"][name] for step in steps) / WORLD_SIZE  # as in data parallelism
        assert_close(mean, expected, atol=1e-5, rtol=1e-4, msg=name)


def test_local_negatives_differ_from_global_ones(ranks):
    for rank in range(WORLD_SIZE):
        own = ranks[rank]["own_rank"]
        assert_close(own["loss"], matching_step(rank, negative_all_rank=False)["loss"])
        assert not torch.isclose(own["loss"], ranks[rank]["all_ranks"]["loss"])


@pytest.mark.parametrize("name", ["queue", "without_ids"])
def test_queues_are_identical_on_all_processes(ranks, name):
    first, second = (rank[name] for rank in ranks)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_queue_equals_one_process_with_the_whole_batch(ranks):
    queue = FeatureQueue(QUEUE_SIZE, WIDTH)
    for step in range(NUM_STEPS):  # 6 rows per step in a queue of 8
        parts = zip(*(batch_of(step, rank) for rank in range(WORLD_SIZE)), strict=True)
        queue.enqueue(*map(torch.cat, parts))
    for name, value in queue.state_dict().items():
        assert_close(ranks[0]["queue"][name], value, rtol=0, atol=0)
    assert ranks[0]["queue"]["num_enqueued"] == NUM_STEPS * WORLD_SIZE * BATCH_SIZE


def test_one_process_needs_no_process_group():
    assert not distributed.is_initialized()
    assert world_size() == 1
    tensor = torch.ones(2)
    assert gather(tensor) is tensor
    assert gather_with_gradient(tensor) is tensor
    assert pad_to_longest(tensor, PAD) is tensor
    assert first_row(tensor) == 0
