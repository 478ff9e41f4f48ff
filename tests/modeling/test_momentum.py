# SPDX-License-Identifier: BSD-3-Clause
"""EMA update in place, and the queue as a ring buffer for any batch size."""

import pytest
import torch
from torch.testing import assert_close

from blip_hf import BlipForPreTraining
from blip_hf.modeling.momentum import UNKNOWN_IMAGE, FeatureQueue, ema_update_
from tests.support.tiny_models import tiny_pretraining_config


def numbered_rows(numbers, width=3):
    """Image and text features filled with their number, and image ids from 100 on."""
    numbers = torch.tensor(numbers)
    images = numbers[:, None].expand(-1, width).float()
    return images, -images, 100 + numbers


def queue_of(size, *batches):
    queue = FeatureQueue(size, 3)
    for batch in batches:
        queue.enqueue(*numbered_rows(batch))
    return queue


@pytest.mark.parametrize("momentum", [0.0, 0.995, 1.0])
def test_ema_update_follows_the_formula_in_place(momentum):
    momentum_parameters, currents = ([torch.randn(3, 4), torch.randn(5)] for _ in range(2))
    before = [parameter.clone() for parameter in momentum_parameters]
    current_before = [current.clone() for current in currents]
    pointers = [parameter.data_ptr() for parameter in momentum_parameters]
    ema_update_(momentum_parameters, currents, momentum)
    for parameter, old, current in zip(momentum_parameters, before, currents, strict=True):
        assert_close(parameter, momentum * old + (1 - momentum) * current)
    assert [parameter.data_ptr() for parameter in momentum_parameters] == pointers
    assert all(map(torch.equal, currents, current_before))


def test_ema_update_of_parameters_records_no_gradient():
    parameter, current = torch.nn.Parameter(torch.zeros(2), requires_grad=False), torch.nn.Parameter(torch.ones(2))
    ema_update_([parameter], [current], 0.9)
    assert not parameter.requires_grad
    assert_close(parameter.data, torch.full((2,), 0.1))


@pytest.mark.parametrize("batch_sizes", [(2, 2, 2), (4,), (3, 3), (1, 4, 2), (5,), (11,), (3, 9, 1)])
def test_queue_keeps_the_newest_rows_for_any_batch_size(batch_sizes):
    size, starts = 4, [sum(batch_sizes[:i]) for i in range(len(batch_sizes))]
    batches = [list(range(start, start + count)) for start, count in zip(starts, batch_sizes, strict=True)]
    queue = queue_of(size, *batches)
    total = sum(batch_sizes)
    for number in range(max(0, total - size), total):  # row n is at index n modulo the size
        assert_close(queue.image_features[number % size], torch.full((3,), float(number)))
        assert_close(queue.text_features[number % size], torch.full((3,), -float(number)))
        assert queue.image_ids[number % size] == 100 + number
    assert queue.num_enqueued == total
    assert queue.pointer == total % size


def test_queue_writes_in_place():
    queue = FeatureQueue(4, 3)
    pointers = [buffer.data_ptr() for buffer in queue.buffers()]
    queue.enqueue(*numbered_rows(list(range(7))))
    assert [buffer.data_ptr() for buffer in queue.buffers()] == pointers


def test_fill_is_the_share_of_real_rows():
    queue = FeatureQueue(4, 3)
    fills = [queue.fill.item()]
    for _ in range(3):
        queue.enqueue(*numbered_rows([0, 1]))
        fills.append(queue.fill.item())
    assert fills == [0.0, 0.5, 1.0, 1.0]


def test_queue_of_size_zero_keeps_nothing():
    queue = queue_of(0, [0, 1], [2])
    assert queue.image_features.shape == queue.text_features.shape == (0, 3)
    assert queue.pointer == 0
    assert queue.num_enqueued == 3


def test_a_queue_that_does_not_count_has_no_keys_in_training():
    queue = queue_of(4, [0, 1])
    assert [len(column) for column in queue.keys_and_ids()] == [4, 4, 4]
    queue.counts = False
    assert [len(column) for column in queue.keys_and_ids()] == [0, 0, 0]
    queue.enqueue(*numbered_rows([2]))
    assert queue.num_enqueued == 3
    assert [len(column) for column in queue.eval().keys_and_ids()] == [4, 4, 4]


def test_rows_without_image_ids_have_the_unknown_id():
    queue = queue_of(4, [0, 1])
    images, texts, _ = numbered_rows([2, 3, 4])
    queue.enqueue(images, texts)
    assert queue.image_ids.tolist() == [UNKNOWN_IMAGE, 101, UNKNOWN_IMAGE, UNKNOWN_IMAGE]


def test_half_precision_rows_are_stored_in_the_queues_precision():
    queue = FeatureQueue(2, 3)
    images, texts, image_ids = numbered_rows([1, 2])
    queue.enqueue(images.bfloat16(), texts.bfloat16(), image_ids)
    assert queue.image_features.dtype == torch.float32
    assert_close(queue.image_features, images)


def test_a_models_queue_starts_with_different_unit_vectors():
    queue = BlipForPreTraining(tiny_pretraining_config()).queue
    for features in (queue.image_features, queue.text_features):
        assert_close(features.norm(dim=-1), torch.ones(12))
        assert len(features.unique(dim=0)) == 12
    assert not torch.equal(queue.image_features, queue.text_features)
    assert (queue.image_ids == UNKNOWN_IMAGE).all()
    assert queue.num_enqueued == 0
