# SPDX-License-Identifier: BSD-3-Clause
"""An evaluation loss that is not finite stops a training, with the ids of its first batch."""

import math

import pytest
import torch

from blip_hf.data.pairs import PairDataset
from blip_hf.finite import NotFiniteError
from tests.support.trainers import make_captioning_trainer, make_contrastive_trainer, make_records


TRAINERS = pytest.mark.parametrize("make_trainer", [make_captioning_trainer, make_contrastive_trainer])


class BrokenPixels:
    """A collator that makes the pixels of one image not finite."""

    def __init__(self, collator, image_id, value):
        self.collator, self.image_id, self.value = collator, image_id, value

    def __call__(self, records):
        batch = self.collator(records)
        for row, record in enumerate(records):
            if record["image_id"] == self.image_id:
                batch["pixel_values"][row] = self.value
        return batch


def trainer_with_broken_pixels(make_trainer, folder, value, **fields):
    records = make_records(6)
    fields = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 1, **fields}
    trainer = make_trainer(folder, PairDataset(records[:2]), PairDataset(records[2:]), **fields)
    trainer.data_collator = BrokenPixels(trainer.data_collator, 4, value)
    return trainer


@TRAINERS
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_names_the_batch(tmp_path, make_trainer, value):
    trainer = trainer_with_broken_pixels(make_trainer, tmp_path, value)
    with pytest.raises(NotFiniteError, match=r"The evaluation loss after step 1 is nan for the records 4, 5\. Lower"):
        trainer.train()


def test_no_nan_is_compared_with_the_best_loss(tmp_path):
    fields = {"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True}
    with pytest.raises(NotFiniteError, match="evaluation loss"):
        trainer_with_broken_pixels(make_captioning_trainer, tmp_path, torch.nan, **fields).train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_the_check_can_be_turned_off(tmp_path):
    trainer = trainer_with_broken_pixels(make_captioning_trainer, tmp_path, torch.nan, stop_on_nan=False)
    trainer.train()
    assert math.isnan(trainer.evaluate()["eval_loss"])
