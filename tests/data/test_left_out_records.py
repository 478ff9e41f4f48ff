# SPDX-License-Identifier: BSD-3-Clause
"""A record that cannot be read stops no run and counts in no metric, wherever it is alone in its batch."""

import pytest
import torch
import transformers
from PIL import Image
from torch.testing import assert_close
from torch.utils.data import DataLoader

from blip_hf import BlipForPreTraining
from blip_hf.data.collators import BlipCaptioningCollator, BlipPretrainingCollator
from blip_hf.data.encoded import EncodedPairs
from blip_hf.data.pairs import FilledBatches, PairDataset
from blip_hf.training import BlipContrastiveTrainer, BlipTrainer, BlipTrainingArguments
from tests.support.twins import tiny_capfilt, tiny_pretraining_config


def make_records(num_records, broken=()):
    return [
        {
            "image": "lost.jpg" if i in broken else Image.new("RGB", (32, 32), (20 * i, 90, 255 - 20 * i)),
            "caption": " ".join("abcdefghijkl"[: i + 1]),
            "image_id": i,
        }
        for i in range(num_records)
    ]


def make_arguments(folder, **fields):
    defaults = {"max_steps": -1, "num_train_epochs": 1, "warmup_steps": 0, "logging_steps": 1, "save_strategy": "no"}
    defaults |= {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 2}
    return BlipTrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **{**defaults, **fields})


def make_contrastive(folder, train=None, evaluate=None, weights=None, **fields):
    torch.manual_seed(0)
    _, processor, *_ = tiny_capfilt()
    config = tiny_pretraining_config(queue_size=4, **(weights or {}))
    for name, value in processor.config_token_ids().items():
        setattr(config.text_config, name, value)
    return BlipContrastiveTrainer(
        BlipForPreTraining(config),
        make_arguments(folder, **fields),
        train_dataset=train,
        eval_dataset=evaluate,
        data_collator=BlipPretrainingCollator(processor),
    )


def make_captioning(folder, train=None, evaluate=None, **fields):
    captioner, processor, *_ = tiny_capfilt()
    return BlipTrainer(
        captioner,
        make_arguments(folder, **fields),
        train_dataset=train,
        eval_dataset=evaluate,
        data_collator=BlipCaptioningCollator(processor, prompt=None),
    )


TRAINERS = [make_contrastive, make_captioning]


@pytest.mark.parametrize("make", TRAINERS)
def test_training_goes_on_past_records_that_fill_a_batch(tmp_path, make):
    trainer = make(tmp_path, PairDataset(make_records(6, broken=(1, 5))))
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["step"] for log in logs] == [1, 2, 3, 4, 5, 6]
    assert torch.tensor([log["loss"] for log in logs]).isfinite().all()
    assert logs[-1]["num_skipped"] == 2


def test_a_batch_is_filled_by_the_next_usable_record(tmp_path):
    filled = FilledBatches(PairDataset(make_records(6, broken=(1, 2, 5))))
    batches = DataLoader(filled, batch_size=1, collate_fn=list)
    assert [pair["image_id"] for batch in batches for pair in batch] == [0, 3, 3, 3, 4, 0]
    assert filled.num_skipped == 3
    # Where a batch has a usable record, nothing is added.
    assert [len([pair for pair in batch if pair]) for batch in DataLoader(filled, 3, collate_fn=list)] == [1, 2]


def test_a_stock_trainer_of_transformers_goes_on_too(tmp_path):
    captioner, processor, *_ = tiny_capfilt()
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=4, per_device_train_batch_size=1, remove_unused_columns=False, use_cpu=True
    )
    dataset = FilledBatches(PairDataset(make_records(4, broken=(2,))))
    collator = BlipCaptioningCollator(processor, prompt=None)
    trainer = transformers.Trainer(captioner, arguments, data_collator=collator, train_dataset=dataset)
    assert trainer.train().global_step == 4


@pytest.mark.parametrize("make", TRAINERS)
def test_a_wrong_folder_stops_training_and_evaluation(tmp_path, make):
    lost = PairDataset(make_records(3, broken=range(3)))
    trainer = make(tmp_path, lost, lost)
    with pytest.raises(ValueError, match=r"None of the 3 records .* can be used.*image_root"):
        trainer.train()
    with pytest.raises(ValueError, match=r"None of the 3 records .* can be used.*image_root"):
        trainer.evaluate()


@pytest.mark.parametrize("make", TRAINERS)
@pytest.mark.parametrize("broken", [(4,), (0, 1)], ids=["last batch", "first batch"])
def test_records_that_fill_a_batch_change_no_metric(tmp_path, make, broken):
    records = make_records(5, broken)
    readable = [record for i, record in enumerate(records) if i not in broken]
    found, expected = (make(tmp_path, evaluate=PairDataset(part)).evaluate() for part in (records, readable))
    names = [name for name in expected if "loss" in name or "r@" in name or "accuracy" in name]
    assert len(names) >= 1
    assert_close([found[name] for name in names], [expected[name] for name in names])


def test_the_loss_of_an_evaluation_is_the_mean_over_its_records(tmp_path):
    def loss_of(dataset):
        return make_captioning(tmp_path, evaluate=dataset).evaluate()["eval_loss"]

    pairs = PairDataset(make_records(3))
    # Batches of two and of one; then the larger one has lost a record.
    assert loss_of(pairs) == pytest.approx((2 * loss_of([pairs[0], pairs[1]]) + loss_of([pairs[2]])) / 3)
    lost = PairDataset(make_records(3, broken=(1,)))
    assert loss_of(lost) == pytest.approx((loss_of([pairs[0]]) + loss_of([pairs[2]])) / 2)


def test_pairs_in_memory_leave_out_whole_chunks(monkeypatch):
    _, processor, *_ = tiny_capfilt()
    monkeypatch.setattr("blip_hf.data.encoded._CHUNK_SIZE", 2)
    encoded = EncodedPairs(PairDataset(make_records(5, broken=(0, 4))), BlipPretrainingCollator(processor))
    assert encoded.columns["image_ids"].tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="None of the 3 records"):
        EncodedPairs(PairDataset(make_records(3, broken=range(3))), BlipPretrainingCollator(processor))
