# SPDX-License-Identifier: BSD-3-Clause
"""Collators: the batches of their docstrings, and skipped images."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch.testing import assert_close

from blip_hf.data.collators import BlipCaptioningCollator, BlipMatchingCollator, BlipPretrainingCollator
from blip_hf.data.pairs import PairDataset
from blip_hf.processing_blip import BlipProcessor
from tests.support.images import grey_image
from tests.support.tiny_models import tiny_capfilt
from tests.support.vocabularies import make_processor


COLLATORS = [BlipPretrainingCollator, BlipMatchingCollator, BlipCaptioningCollator]


@pytest.fixture(scope="module")
def processor() -> BlipProcessor:
    return make_processor(("a", "picture", "of", "red", "square"), image_size=1)


@pytest.fixture
def records() -> list[dict]:
    black, white = (Image.new("RGB", (1, 1), color) for color in ("black", "white"))
    return [
        {"image": black, "caption": "a square", "image_id": 7},
        {"image": white, "caption": "a red square", "image_id": 9},
    ]


def test_pretraining_batch_matches_the_docstring(processor, records):
    batch = BlipPretrainingCollator(processor)(records)
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "image_ids"}
    assert_close(batch["input_ids"], torch.tensor([[2, 5, 9, 3, 0], [2, 5, 8, 9, 3]]))
    assert_close(batch["attention_mask"], torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]))
    assert_close(batch["image_ids"], torch.tensor([7, 9]))
    # (0 - mean) / std and (1 - mean) / std of CLIP.
    pixels = torch.tensor([[-1.7923, -1.7521, -1.4802], [1.9303, 2.0749, 2.1459]])
    assert_close(batch["pixel_values"], pixels[:, :, None, None], atol=5e-5, rtol=0)


def test_matching_batch_matches_the_docstring(processor, records):
    batch = BlipMatchingCollator(processor)(records)
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask"}
    assert_close(batch["input_ids"], torch.tensor([[11, 5, 9, 3, 0], [11, 5, 8, 9, 3]]))
    assert_close(batch["attention_mask"], torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]))


def test_matching_batch_runs_through_its_model():
    _, processor, matcher, _ = tiny_capfilt()
    pairs = [{"image": grey_image(level), "caption": "a b", "label": level % 2} for level in range(3)]
    batch = BlipMatchingCollator(processor)(pairs)
    assert batch["labels"].tolist() == [0, 1, 0]
    assert matcher(**batch).loss > 0
    del pairs[0]["label"]
    assert matcher(**BlipMatchingCollator(processor)(pairs)).itm_logits.shape == (3, 2)


def test_captioning_batch_matches_the_docstring(processor, records):
    batch = BlipCaptioningCollator(processor)(records)
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "labels"}
    assert_close(batch["input_ids"], torch.tensor([[10, 5, 6, 7, 5, 9, 3, 0], [10, 5, 6, 7, 5, 8, 9, 3]]))
    assert_close(batch["attention_mask"], torch.tensor([[1] * 7 + [0], [1] * 8]))
    assert_close(batch["labels"], torch.tensor([[-100] * 4 + [5, 9, 3, -100], [-100] * 4 + [5, 8, 9, 3]]))


def test_captioning_without_prompt_has_a_target_for_each_token(processor, records):
    batch = BlipCaptioningCollator(processor, prompt="")(records)
    assert_close(batch["input_ids"], torch.tensor([[10, 5, 9, 3, 0], [10, 5, 8, 9, 3]]))
    assert_close(batch["labels"], torch.tensor([[-100, 5, 9, 3, -100], [-100, 5, 8, 9, 3]]))


@pytest.mark.parametrize(
    ("collator_class", "default"),
    [(BlipPretrainingCollator, 30), (BlipMatchingCollator, 35), (BlipCaptioningCollator, 40)],
)
def test_rows_are_cut_at_the_length_of_the_role(collator_class, default, processor):
    record = {"image": grey_image(), "caption": "red " * 60, "image_id": 0}
    assert collator_class(processor)([record])["input_ids"].shape == (1, default)
    short = collator_class(processor, max_length=8)([record])["input_ids"]
    assert short.shape == (1, 8)
    assert short[0, -1] == 3  # [SEP] is kept


@pytest.mark.parametrize("collator_class", COLLATORS)
def test_images_may_have_any_type(collator_class, processor, tmp_path):
    path = tmp_path / "grey.png"
    Image.new("L", (3, 2), 77).save(path)
    forms = [
        str(path),
        Image.new("L", (3, 2), 77),
        np.full((2, 3, 3), 77, dtype=np.uint8),
        {"bytes": path.read_bytes(), "path": None},
        {"bytes": None, "path": str(path)},
    ]
    pixels = collator_class(processor)([{"image": form, "caption": "a", "image_id": 0} for form in forms])[
        "pixel_values"
    ]
    assert_close(pixels, pixels[:1].expand(5, 3, 1, 1))


def test_unreadable_raw_records_are_skipped_and_named(processor, records, caplog):
    collator = BlipPretrainingCollator(processor)
    for number in range(12):
        batch = collator([records[0], {"image": f"lost_{number}.jpg", "caption": "a", "image_id": number}])
        assert batch["image_ids"].tolist() == [7]
    assert [message.split(":")[0] for message in caplog.messages[:3]] == [
        f"Skipped Cannot read the image lost_{number}.jpg" for number in range(3)
    ]
    assert len(caplog.messages) == 4
    assert caplog.messages[3].startswith("Skipped 10 records so far")


@pytest.mark.parametrize("collator_class", COLLATORS)
def test_a_batch_without_usable_record_raises_with_names(collator_class, processor):
    records = [{"image": f"lost_{number}.jpg", "caption": "a", "image_id": number} for number in range(4)]
    message = r"None of the 4 records .*lost_0.jpg.*lost_1.jpg.*lost_2.jpg.*and 1 more.*image_root"
    with pytest.raises(ValueError, match=message):
        collator_class(processor)(records)


def test_plain_trainer_trains_on_captioning_batches(processor, records, tmp_path):
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.BlipConfig(
        text_config={**vision, "encoder_hidden_size": 8, "vocab_size": 12, "bos_token_id": 10, "sep_token_id": 3},
        vision_config={**vision, "image_size": 1, "patch_size": 1},
    )
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=2, remove_unused_columns=False, report_to="none", disable_tqdm=True, use_cpu=True
    )
    trainer = transformers.Trainer(
        transformers.BlipForConditionalGeneration(config),
        arguments,
        data_collator=BlipCaptioningCollator(processor),
        train_dataset=PairDataset(records),
    )
    assert 0 < trainer.train().training_loss < 20
