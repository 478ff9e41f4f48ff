# SPDX-License-Identifier: BSD-3-Clause
import pytest
import torch

from blip_hf.data.mixtures import PairMixture
from blip_hf.data.readers import find_shards
from blip_hf.data.skips import BrokenDataError
from blip_hf.data.streams import PairStream
from blip_hf.training.streaming import make_stream_loader
from blip_hf.training.worker_errors import worker_errors
from tests.support.streams import make_reader, numbered_shards, write_tar
from tests.support.trainers import make_arguments, make_contrastive_trainer


def collate(pairs):
    return {"numbers": torch.tensor([int(pair["caption"]) for pair in pairs])}


def make_batches(tmp_path, shards, num_workers=0, rank=0, world_size=1, batch_size=4):
    args = make_arguments(tmp_path, dataloader_num_workers=num_workers)
    loader = make_stream_loader(make_reader(shards, rank, world_size), collate, args, batch_size)
    loader.dataset.rank, loader.dataset.world_size = rank, world_size
    return loader


def numbers_of(batches):
    return [number for batch in batches for number in batch["numbers"].tolist()]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_whole_and_cross_epochs(tmp_path, num_workers):
    loader = make_batches(tmp_path, numbered_shards([5, 9]), num_workers)
    batches = [batch for _ in range(3) for batch in loader]

    assert len(loader) == 3
    assert [len(batch["numbers"]) for batch in batches] == [4] * 9
    assert {numbers_of(batches).count(number) for number in range(14)} <= {2, 3}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_batches", [2, 7])
def test_loader_resumes_bit_for_bit(tmp_path, num_workers, num_batches):
    shards = numbered_shards([17, 5, 20, 11])
    loader = make_batches(tmp_path, shards, num_workers)
    iterator = iter(loader)
    found = [next(iterator) for _ in range(num_batches)]
    loader.dataset.save_state(tmp_path)
    whole = numbers_of([*found, *iterator])
    resumed = make_batches(tmp_path, shards, num_workers)
    resumed.dataset.load_state(tmp_path)

    assert numbers_of([*found, *resumed])[: len(whole)] == whole


@pytest.mark.parametrize(("new_ranks", "new_workers"), [(1, 0), (3, 0), (2, 2)])
def test_another_number_of_processes_and_workers_loses_and_repeats_nothing(tmp_path, new_ranks, new_workers):
    shards = numbered_shards([17, 15, 20, 14])
    found = []
    for rank in range(2):
        loader = make_batches(tmp_path, shards, 0, rank, 2, batch_size=1)
        iterator = iter(loader)
        found += numbers_of([next(iterator) for _ in range(7 + rank)])
        loader.dataset.save_state(tmp_path)
    left = {}
    for rank in range(new_ranks):
        loader = make_batches(tmp_path, shards, new_workers, rank, new_ranks, batch_size=1)
        loader.dataset.load_state(tmp_path)
        if new_workers == 0:
            left[rank] = [int(pair["caption"]) for pair in loader.dataset.stream]
        else:  # fewer than the smallest part of a reader, which would continue with the next epoch
            left[rank] = numbers_of(batch for batch, _ in zip(loader, range(8), strict=False))
    found += [number for part in left.values() for number in part]

    assert len(set(found)) == len(found)
    assert new_workers or sorted(found) == list(range(66))


def test_missing_state_is_named(tmp_path):
    loader = make_batches(tmp_path, numbered_shards([5]))

    with pytest.raises(ValueError, match=r"stream_state_0.json.*ignore_data_skip"):
        loader.dataset.load_state(tmp_path)


# Trainer


def make_tars(folder, broken=()):
    for number in range(4):
        write_tar(folder / f"{number}.tar", 12, start=12 * number, broken=broken)
    return find_shards(sorted(folder.glob("*.tar")))


def train(folder, shards, resume_from_checkpoint=None, **fields):
    stream = PairStream(shards, seed=1, buffer_size=16)
    fields = {"per_device_train_batch_size": 4, "max_steps": 10, "save_strategy": "steps", "save_steps": 4, **fields}
    trainer = make_contrastive_trainer(folder, train=stream, **fields)
    collator, seen = trainer.data_collator, []

    def remember(pairs):
        seen.append([pair["caption"] for pair in pairs])
        return collator(pairs)

    trainer.data_collator = remember
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    return trainer, seen


@pytest.mark.parametrize("fields", [{}, {"gradient_accumulation_steps": 2}])
def test_training_resumes_in_the_middle_of_an_epoch_of_a_stream(tmp_path, fields):
    shards = make_tars(tmp_path, broken={3, 30})
    whole, seen = train(tmp_path / "whole", shards, **fields)
    resumed, rest = train(tmp_path / "rest", shards, str(tmp_path / "whole/checkpoint-4"), **fields)
    num_batches = 4 * fields.get("gradient_accumulation_steps", 1)

    assert rest == seen[num_batches:]
    assert resumed.state.epoch == whole.state.epoch
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=0)
    assert resumed.skip_counts().by_reason == whole.skip_counts().by_reason


def test_source_with_a_known_length_has_epochs(tmp_path):
    stream = PairStream(find_shards("scenes:24", shard_size=6))
    fields = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "logging_steps": 6}
    trainer = make_contrastive_trainer(tmp_path, train=stream, **fields)
    trainer.train()

    assert (trainer.state.global_step, trainer.state.epoch) == (12, 2)
    assert [logs["epoch"] for logs in trainer.state.log_history if "loss" in logs] == [1, 2]


def test_source_of_unknown_length_needs_max_steps(tmp_path):
    with pytest.raises(ValueError, match="max_steps"):
        make_contrastive_trainer(tmp_path, train=PairStream(make_tars(tmp_path)))


def test_mixture_trains(tmp_path):
    streams = {name: PairStream(find_shards("scenes:8"), id_prefix=name) for name in ("web", "human")}
    mixture = PairMixture(streams, {"web": 3, "human": 1})
    trainer = make_contrastive_trainer(tmp_path, train=mixture, per_device_train_batch_size=4, max_steps=4)
    trainer.train()

    assert mixture.num_taken == {"web": 12, "human": 4}


def test_counts_of_workers_reach_the_main_process(tmp_path):
    trainer, _ = train(tmp_path / "run", make_tars(tmp_path, broken={3, 30}), max_steps=24, dataloader_num_workers=2)

    assert trainer.skip_counts().by_reason == {"unreadable_image": 4}  # in each of two epochs
    assert trainer.skip_counts().num_usable == 96 - 4 + 4


def test_broken_data_stop_training_with_the_reasons(tmp_path):
    shards = numbered_shards([3000], broken=range(0, 3000, 5))
    trainer = make_contrastive_trainer(
        tmp_path,
        train=PairStream(shards),
        per_device_train_batch_size=50,
        max_steps=60,
        dataloader_num_workers=1,
    )

    with pytest.raises(BrokenDataError, match=r"^Skipped .* bad_record \(first shard-00"), worker_errors():
        trainer.train()
    assert trainer.state.global_step < 30
