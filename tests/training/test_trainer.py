# SPDX-License-Identifier: BSD-3-Clause
"""The fine-tuning trainer: unreadable records, exact evaluation losses, and deprecated names."""

import pytest
import torch
import transformers
from torch.testing import assert_close

import blip_hf.training
from blip_hf.data.collators import BlipCaptioningCollator
from blip_hf.data.pairs import PairDataset
from blip_hf.training import BlipContrastiveTrainer, BlipTrainer
from tests.support.tiny_models import tiny_capfilt
from tests.support.trainers import (
    TensorPairs,
    make_arguments,
    make_captioning_trainer,
    make_contrastive_trainer,
    make_model,
    make_records,
)


TRAINERS = [make_contrastive_trainer, make_captioning_trainer]


@pytest.mark.parametrize("make", TRAINERS)
def test_training_takes_all_steps_despite_broken_records(tmp_path, make):
    trainer = make(tmp_path, PairDataset(make_records(6, broken=(1, 5))))
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["step"] for log in logs] == [1, 2, 3, 4, 5, 6]
    assert torch.tensor([log["loss"] for log in logs]).isfinite().all()
    assert logs[-1]["num_skipped"] == 2


def test_plain_trainer_takes_all_steps_despite_broken_records(tmp_path):
    captioner, processor, *_ = tiny_capfilt()
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=4, per_device_train_batch_size=1, remove_unused_columns=False, use_cpu=True
    )
    dataset = PairDataset(make_records(4, broken=(2,)))
    collator = BlipCaptioningCollator(processor, prompt="")
    trainer = transformers.Trainer(captioner, arguments, data_collator=collator, train_dataset=dataset)
    assert trainer.train().global_step == 4


@pytest.mark.parametrize("make", TRAINERS)
def test_wrong_image_folder_stops_training_and_evaluation(tmp_path, make):
    lost = PairDataset(make_records(3, broken=range(3)))
    trainer = make(tmp_path, lost, lost)
    with pytest.raises(ValueError, match=r"None of the 3 records .* can be used.*image_root"):
        trainer.train()
    with pytest.raises(ValueError, match=r"None of the 3 records .* can be used.*image_root"):
        trainer.evaluate()


@pytest.mark.parametrize("make", TRAINERS)
@pytest.mark.parametrize("broken", [(4,), (0, 1)], ids=["last", "first two"])
def test_broken_records_do_not_change_metrics(tmp_path, make, broken):
    records = make_records(5, broken)
    usable = [record for i, record in enumerate(records) if i not in broken]
    found, expected = (make(tmp_path, evaluate=PairDataset(part)).evaluate() for part in (records, usable))
    names = [name for name in expected if "loss" in name or "r@" in name or "accuracy" in name]
    assert len(names) >= 1
    assert_close([found[name] for name in names], [expected[name] for name in names])


def test_an_evaluation_set_is_checked_once(tmp_path):
    pairs = PairDataset(make_records(3, broken=(1,)))
    trainer = make_captioning_trainer(tmp_path, evaluate=pairs, dataloader_num_workers=1)
    assert len(trainer.get_eval_dataloader().dataset) == 2
    assert pairs.num_skipped == 1
    trainer.eval_dataset.pairs[2]["image"] = "lost_since.jpg"
    assert len(trainer.get_eval_dataloader().dataset) == 2


def test_an_unreadable_image_of_a_plain_list_is_skipped(tmp_path):
    records = make_records(4, broken=(3,))
    found = make_captioning_trainer(tmp_path, evaluate=records).evaluate()["eval_loss"]
    assert found == pytest.approx(
        make_captioning_trainer(tmp_path, evaluate=PairDataset(records)).evaluate()["eval_loss"]
    )
    lost = make_records(2, broken=(0, 1))
    with pytest.raises(ValueError, match="None of the 2 records of this batch"):
        make_captioning_trainer(tmp_path, evaluate=lost).evaluate()


def test_the_loss_of_an_evaluation_is_the_mean_over_its_records(tmp_path):
    def loss_of(dataset):
        return make_captioning_trainer(tmp_path, evaluate=dataset).evaluate()["eval_loss"]

    pairs = PairDataset(make_records(3))
    # Batches of two and of one.
    assert loss_of(pairs) == pytest.approx((2 * loss_of([pairs[0], pairs[1]]) + loss_of([pairs[2]])) / 3)


def test_evaluation_does_not_change_arguments_or_collator(tmp_path):
    pairs = PairDataset(make_records(5))
    trainer = make_captioning_trainer(tmp_path, pairs, pairs, train_sampling_strategy="group_by_length")
    before = trainer.args.to_dict()
    loader = trainer.get_eval_dataloader()
    assert [len(batch["input_ids"]) for batch in loader] == [2, 2, 1]  # despite `dataloader_drop_last`
    assert list(loader.batch_sampler.sampler) == [0, 1, 2, 3, 4]
    assert loader.collate_fn.collator is trainer.data_collator
    assert trainer.args.to_dict() == before


def test_deprecated_trainer_name_warns():
    with pytest.warns(FutureWarning, match=r"`blip_hf.training.BlipTaskTrainer` is deprecated.*BlipTrainer"):
        assert blip_hf.training.BlipTaskTrainer is BlipTrainer


def test_deprecated_trainer_call_returns_the_contrastive_trainer(tmp_path):
    with pytest.warns(FutureWarning, match="use BlipContrastiveTrainer"):
        trainer = BlipTrainer(model=make_model(), args=make_arguments(tmp_path), train_dataset=TensorPairs())
    assert type(trainer) is BlipContrastiveTrainer
    assert trainer.alpha == 0.0

    class MyTrainer(BlipTrainer):
        pass

    with pytest.raises(TypeError, match=r"MyTrainer derives from BlipTrainer.*BlipContrastiveTrainer"):
        MyTrainer(make_model(), make_arguments(tmp_path))
