# SPDX-License-Identifier: BSD-3-Clause
"""Streams on two processes: each pair is read once an epoch, and a resumed run ends with the weights of a whole one."""

import hashlib
from collections import Counter

import pytest

from blip_hf.data.mixtures import PairMixture
from blip_hf.data.readers import find_shards
from blip_hf.data.streams import PairStream
from tests.support.ranks import WORLD_SIZE, run_on_ranks
from tests.support.streams import write_tar
from tests.support.trainers import make_contrastive_trainer


BATCH_SIZE, PAIRS_PER_TAR = 4, 12
SPLIT_STEPS, MIXTURE_STEPS, SAVED_STEP = 12, 9, 4


def make_stream(folder, pattern, **options):
    return PairStream(find_shards(f"file://{folder}/{pattern}"), seed=1, buffer_size=16, **options)


def make_splits(folder):
    """96 pairs in 2 parts: an epoch is 6 steps."""
    return make_stream(folder, "web-*.tar", num_splits=2)


def make_mixture(folder):
    """96 pairs and 48 pairs; 9 steps take half of each."""
    streams = {"web": make_stream(folder, "web-*.tar"), "human": make_stream(folder, "human-*.tar", id_prefix="human")}
    return PairMixture(streams, {"web": 2, "human": 1})


def train(folder, stream, max_steps, resume_from_checkpoint=None, **fields):
    """The captions of this process and the digest of the weights."""
    fields |= {"per_device_train_batch_size": BATCH_SIZE, "max_steps": max_steps}
    trainer = make_contrastive_trainer(folder, train=stream, save_strategy="steps", save_steps=SAVED_STEP, **fields)
    collator, seen = trainer.data_collator, []

    def remember(pairs):
        seen.extend(int(pair["caption"]) for pair in pairs)
        return collator(pairs)

    trainer.data_collator = remember
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    digest = hashlib.sha256()
    for name, value in sorted(trainer.model.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return seen, digest.hexdigest()


def train_all(rank, folder):
    results = {}
    for name, make, max_steps in (("splits", make_splits, SPLIT_STEPS), ("mixture", make_mixture, MIXTURE_STEPS)):
        for num_workers in (0, 2):
            place, fields = folder / f"{name}-{num_workers}", {"dataloader_num_workers": num_workers}
            if num_workers:
                fields["dataloader_multiprocessing_context"] = "fork"  # `remember` cannot be pickled
            whole = train(place / "whole", make(folder), max_steps, **fields)
            checkpoint = str(place / "whole" / f"checkpoint-{SAVED_STEP}")
            results[name, num_workers] = whole, train(place / "rest", make(folder), max_steps, checkpoint, **fields)
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    for number in range(8):
        write_tar(folder / f"web-{number}.tar", PAIRS_PER_TAR, start=PAIRS_PER_TAR * number)
    for number in range(4):
        write_tar(folder / f"human-{number}.tar", PAIRS_PER_TAR, start=1000 + PAIRS_PER_TAR * number)
    return run_on_ranks(train_all, folder)


@pytest.mark.slow
def test_each_epoch_reads_one_part_once(ranks):
    (first, _), (second, _) = (rank["splits", 0][0] for rank in ranks)
    half = SPLIT_STEPS // 2 * BATCH_SIZE
    epochs = [first[:half] + second[:half], first[half:] + second[half:]]
    parts = [
        [number for tar in range(split, 8, 2) for number in range(PAIRS_PER_TAR * tar, PAIRS_PER_TAR * (tar + 1))]
        for split in range(2)
    ]

    assert [sorted(epoch) for epoch in epochs] == parts


@pytest.mark.slow
def test_a_mixture_gives_no_pair_to_two_processes(ranks):
    counts = Counter(number for rank in ranks for number in rank["mixture", 0][0][0])

    assert set(counts.values()) == {1}
    assert sum(number < 1000 for number in counts) == 2 * sum(number >= 1000 for number in counts) == 48
    assert len(counts) == MIXTURE_STEPS * BATCH_SIZE * WORLD_SIZE


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("name", ["splits", "mixture"])
def test_resumed_run_equals_the_whole_one(ranks, name, num_workers):
    for rank in ranks:
        (seen, weights), (rest, resumed_weights) = rank[name, num_workers]

        assert resumed_weights == weights
        if num_workers == 0:
            assert rest == seen[SAVED_STEP * BATCH_SIZE :]
    assert len({rank[name, num_workers][0][1] for rank in ranks}) == 1
