# SPDX-License-Identifier: BSD-3-Clause
"""Two processes hold the queue that one process would hold."""

import pytest
import torch
from torch import distributed, multiprocessing
from torch.testing import assert_close

from blip_hf.distributed import gather, world_size
from blip_hf.momentum import FeatureQueue


WORLD_SIZE, BATCH_SIZE, QUEUE_SIZE, WIDTH, NUM_STEPS = 2, 3, 8, 4, 3


def batch_of(step, rank):
    """Image and text features and image ids of one process in one step."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    images, texts = torch.randn(2, BATCH_SIZE, WIDTH, generator=generator)
    return images, texts, 100 * step + 10 * rank + torch.arange(BATCH_SIZE)


def run_rank(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD_SIZE)
    queue = FeatureQueue(QUEUE_SIZE, WIDTH)
    without_ids = FeatureQueue(QUEUE_SIZE, WIDTH)
    for step in range(NUM_STEPS):
        queue.enqueue(*batch_of(step, rank))
        without_ids.enqueue(*batch_of(step, rank)[:2])
    strided = torch.arange(6).view(2, 3).T + 10 * rank  # not contiguous
    features = torch.ones(2, 2, requires_grad=True)
    torch.save(
        {
            "queue": queue.state_dict(),
            "without_ids": without_ids.state_dict(),
            "gathered": gather(strided),
            "uneven": gather(torch.full((rank + 1, 2), rank)),
            "has_gradient": gather(features).requires_grad,
            "world_size": world_size(),
        },
        f"{folder}/rank{rank}.pt",
    )
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes has after three steps."""
    if not distributed.is_available():
        pytest.skip("this build of torch has no torch.distributed")
    folder = tmp_path_factory.mktemp("distributed")
    multiprocessing.spawn(run_rank, args=(str(folder),), nprocs=WORLD_SIZE)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(WORLD_SIZE)]


def test_gather_concatenates_in_rank_order(ranks):
    own = torch.arange(6).view(2, 3).T
    for rank in ranks:
        assert rank["world_size"] == WORLD_SIZE
        assert torch.equal(rank["gathered"], torch.cat([own, own + 10]))
        assert not rank["has_gradient"]


def test_gather_takes_unequal_numbers_of_rows(ranks):
    for rank in ranks:
        assert rank["uneven"].tolist() == [[0, 0], [1, 1], [1, 1]]


@pytest.mark.parametrize("name", ["queue", "without_ids"])
def test_queues_are_identical_on_all_processes(ranks, name):
    first, second = (rank[name] for rank in ranks)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_queue_equals_one_process_with_the_whole_batch(ranks):
    queue = FeatureQueue(QUEUE_SIZE, WIDTH)
    for step in range(NUM_STEPS):  # 6 rows a step in a ring of 8
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
