# SPDX-License-Identifier: BSD-3-Clause
"""The random order of an epoch."""

import tracemalloc

from accelerate.data_loader import SeedableRandomSampler

from blip_hf.data.pairs import PairDataset
from blip_hf.training.sampling import ShuffleSampler
from tests.support.trainers import make_captioning_trainer, make_records


def test_the_order_is_that_of_accelerate():
    ours, theirs = ShuffleSampler(1000, seed=3), SeedableRandomSampler(range(1000), data_seed=3)
    for epoch in (0, 1, 5):
        ours.set_epoch(epoch)
        theirs.set_epoch(epoch)
        assert list(ours) == list(theirs)


def test_no_python_object_is_made_of_each_index():
    indices = iter(ShuffleSampler(1_000_000, seed=0))
    tracemalloc.start()
    try:
        next(indices)
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


def test_the_trainer_shuffles_by_its_seed_and_epoch(tmp_path):
    def sampler(**fields):
        pairs = PairDataset(make_records(8))
        return make_captioning_trainer(tmp_path, pairs, **fields).get_train_dataloader().batch_sampler.sampler

    assert isinstance(sampler(), ShuffleSampler)
    assert list(sampler(seed=1)) == list(ShuffleSampler(8, seed=1))
    assert list(sampler(seed=1, data_seed=2)) == list(ShuffleSampler(8, seed=2))
