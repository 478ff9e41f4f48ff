# SPDX-License-Identifier: BSD-3-Clause
"""Visual question answering: the dataset and its collator."""

import random

import pytest
import torch
from PIL import Image, ImageOps
from torch.testing import assert_close
from torch.utils.data import DataLoader

from blip_hf import BlipForQuestionAnswering, BlipProcessor
from blip_hf.data.transforms import mirror_caption
from blip_hf.data.vqa import BlipVqaCollator, VqaDataset
from tests.support.tiny_models import tiny_config
from tests.support.vocabularies import make_processor


@pytest.fixture(scope="module")
def processor() -> BlipProcessor:
    return make_processor(("what", "is", "it", "a", "red", "square"))


def question(**fields):
    record = {"image": Image.new("RGB", (4, 4)), "question": "What is it?", "question_id": 0}
    return {**record, "answers": ["red"], "weights": [1.0], **fields}


# Data set


def test_items_have_opened_images_and_normalised_questions():
    item = VqaDataset([question(question="  What's (on) it?  ", answers=["A", "b"], weights=[0.5, 0.5])])[0]
    assert item["image"].mode == "RGB"
    assert item["question"] == "  what's on it?"
    assert (item["question_id"], item["answers"], item["weights"]) == (0, ["A", "b"], [0.5, 0.5])
    assert VqaDataset([question()], normalize_questions=False)[0]["question"] == "What is it?"


def test_a_mirrored_image_turns_left_and_right_in_question_and_answers():
    def mirror(image, text, rng):
        return ImageOps.mirror(image), mirror_caption(text)

    asked = question(question="Is the dog left?", answers=["top  right", "on the\nleft", "no"], weights=[0.3] * 3)
    item = VqaDataset([asked], mirror)[0]
    assert item["question"] == "is the dog right?"
    assert item["answers"] == ["top left", "on the right", "no"]


def test_randomness_depends_only_on_seed_epoch_and_index():
    def remember(image: Image.Image, text: str, rng: random.Random) -> tuple[Image.Image, str]:
        first, *rest = text.split("\n")
        return image, "\n".join([f"{first} {rng.random()}", *rest])

    dataset = VqaDataset([question()] * 4, remember, seed=2)
    forwards = [dataset[i]["question"] for i in range(4)]
    assert [dataset[i]["question"] for i in reversed(range(4))][::-1] == forwards
    dataset.set_epoch(1)
    assert not {dataset[i]["question"] for i in range(4)} & set(forwards)


def test_broken_records_are_skipped_counted_and_named(caplog, processor):
    records = [question(), question(image="lost.jpg"), question(question="..."), question(question_id=3)]
    assert [item["question_id"] for item in VqaDataset(records)] == [0, 3, 3, 3]
    assert "record 1: Cannot read the image lost.jpg" in caplog.text
    assert "record 2: its question '...' has no words left" in caplog.text
    dataset = VqaDataset(records)
    (batch,) = DataLoader(dataset, batch_size=4, collate_fn=BlipVqaCollator(processor), num_workers=1)
    assert len(batch["input_ids"]) == 4
    assert dataset.num_skipped == 2


def test_lengths_are_those_of_the_questions():
    assert VqaDataset([question(), question(question="why?")]).caption_lengths() == [3, 1]


# Collator


def test_batch_stacks_answers_and_merges_equal_ones(processor):
    batch = BlipVqaCollator(processor)(
        [
            question(question="what is it", answers=["red", "a red square", "red", "red"], weights=[0.25] * 4),
            question(question="what", answers=["a square"], weights=[0.2]),
        ]
    )
    assert set(batch) == {
        "pixel_values", "input_ids", "attention_mask", "labels", "answer_weights", "answers_per_question"
    }  # fmt: skip
    assert_close(batch["input_ids"], torch.tensor([[2, 5, 6, 7, 3], [2, 5, 3, 0, 0]]))
    assert_close(batch["attention_mask"], torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]))
    assert_close(
        batch["labels"], torch.tensor([[-100, 9, 3, -100, -100], [-100, 8, 9, 10, 3], [-100, 8, 10, 3, -100]])
    )
    assert_close(batch["answer_weights"], torch.tensor([0.75, 0.25, 0.2]))
    assert_close(batch["answers_per_question"], torch.tensor([2, 1]))


def test_a_batch_without_answers_has_no_labels(processor):
    batch = BlipVqaCollator(processor)([question(answers=[], weights=[])])
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask"}


def test_long_questions_are_truncated_and_answers_are_not(processor):
    batch = BlipVqaCollator(processor)([question(question="what " * 60, answers=["red " * 60])])
    assert batch["input_ids"].shape == (1, 35)
    assert batch["labels"].shape == (1, 62)


def test_questions_without_answers_do_not_affect_the_loss(processor):
    torch.manual_seed(0)
    model = BlipForQuestionAnswering(tiny_config()).eval()
    answered = question(answers=["red", "a square"], weights=[0.5, 0.5])
    collator = BlipVqaCollator(processor)
    alone = model(**collator([answered])).loss
    together = model(**collator([question(answers=[], weights=[]), answered])).loss
    assert_close(together, alone / 2)  # over two questions
