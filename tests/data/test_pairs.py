# SPDX-License-Identifier: BSD-3-Clause
"""The dataset of pairs: items, randomness, and skipped records."""

import pickle
import random

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from blip_hf.data.pairs import PairDataset
from tests.support.images import grey_image
from tests.support.trainers import make_records


class Remember:
    """A transform that puts its randomness into the caption."""

    def __call__(self, image: Image.Image, caption: str, rng: random.Random) -> tuple[Image.Image, str]:
        return image, f"{caption} {rng.random()}"


def captions(items: list[dict]) -> list[str]:
    return [item["caption"] for item in items]


def test_items_have_opened_images_and_normalised_captions():
    item = PairDataset([{"image": Image.new("L", (5, 4)), "caption": "  A RED Square!  ", "image_id": 3}])[0]
    assert item["image"].mode == "RGB"
    assert item["image"].size == (5, 4)
    assert (item["caption"], item["image_id"]) == ("a red square", 3)


def test_captions_are_truncated_and_optionally_not_normalised():
    pairs = [{"image": grey_image(), "caption": "One two, THREE four!", "image_id": 0}]
    assert PairDataset(pairs, max_words=2)[0]["caption"] == "one two,"
    assert PairDataset(pairs, max_words=2, normalize_captions=False)[0]["caption"] == "One two, THREE four!"


def test_randomness_depends_only_on_seed_epoch_and_index():
    pairs = [{"image": grey_image(), "caption": "a", "image_id": 0}] * 6
    dataset = PairDataset(pairs, Remember(), seed=3)
    forwards = captions([dataset[i] for i in range(6)])
    assert captions([dataset[i] for i in reversed(range(6))])[::-1] == forwards
    assert captions(list(PairDataset(pairs, Remember(), seed=3))) == forwards
    assert dataset[-1]["caption"] == forwards[-1]
    assert len(set(forwards)) == 6
    assert not set(captions(list(PairDataset(pairs, Remember(), seed=4)))) & set(forwards)
    dataset.set_epoch(1)
    assert not set(captions(list(dataset))) & set(forwards)
    dataset.set_epoch(0)
    assert captions(list(dataset)) == forwards


def test_randomness_is_the_same_on_every_machine():
    dataset = PairDataset([{"image": grey_image(), "caption": "a", "image_id": 0}], Remember(), seed=1)
    dataset.set_epoch(2)
    assert dataset[0]["caption"] == f"a {random.Random('1/2/0').random()}"


def test_the_next_usable_record_replaces_an_unusable_one():
    dataset = PairDataset(make_records(6, broken=(1, 2, 5)))
    assert [item["image_id"] for item in dataset] == [0, 3, 3, 3, 4, 0]
    assert dataset[-1]["image_id"] == 0
    assert [dataset.get(i) is None for i in range(6)] == [False, True, True, False, False, True]
    assert dataset.num_skipped == 3


def test_a_substitute_has_the_randomness_of_the_item_it_replaces():
    records = [{"image": grey_image(), "caption": "a", "image_id": i} for i in range(3)]
    sound = [item["caption"] for item in PairDataset(records, Remember())]
    records[1]["image"] = "lost.jpg"
    assert [item["caption"] for item in PairDataset(records, Remember())] == sound


def test_a_hundred_consecutive_unusable_records_raise():
    records = make_records(1) * 201
    records[100:200] = make_records(1, broken=(0,)) * 100
    dataset = PairDataset(records)
    assert dataset[101]["image_id"] == 0
    with pytest.raises(ValueError, match=r"None of the 100 records from number 100 on can be used.*image_root"):
        dataset[100]


def test_workers_see_new_epochs_and_report_skipped_records():
    pairs = [{"image": grey_image(i), "caption": "a", "image_id": i} for i in range(10)]
    pairs[2]["image"] = "lost.jpg"
    pairs[7]["caption"] = "..."
    pairs[8]["image"] = {"bytes": b"no image", "path": "broken.png"}
    dataset, alone = PairDataset(pairs, Remember()), PairDataset(pairs, Remember())
    loader = DataLoader(dataset, batch_size=3, num_workers=2, persistent_workers=True, collate_fn=list)
    epochs = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        alone.set_epoch(epoch)
        epochs.append([item["caption"] for batch in loader for item in batch])
        assert dataset.num_skipped == 3  # once each, however often they are drawn
        assert epochs[-1] == [item["caption"] for item in alone]
    assert epochs[0] != epochs[1]


def test_only_the_first_skips_are_named(caplog):
    dataset = PairDataset([{"image": f"lost_{i}.jpg", "caption": "a", "image_id": i} for i in range(120)])
    for _ in range(2):
        assert [dataset.get(i) for i in range(120)] == [None] * 120
    assert dataset.num_skipped == 120
    assert len(caplog.messages) == 5
    assert all(f"record {i}: Cannot read the image lost_{i}.jpg" in caplog.messages[i] for i in range(3))
    assert [message.split(" so far")[0] for message in caplog.messages[3:]] == [
        "Skipped 10 records",
        "Skipped 100 records",
    ]


def test_an_empty_caption_is_skipped_and_quoted(caplog):
    dataset = PairDataset([{"image": grey_image(), "caption": " ... ", "image_id": 0}])
    assert dataset.get(0) is None
    assert dataset.num_skipped == 1
    assert "record 0: its caption ' ... ' has no words left" in caplog.messages[0]


def test_datasets_can_be_pickled():
    dataset = PairDataset([{"image": grey_image(), "caption": "a", "image_id": 0}], Remember(), seed=5)
    dataset.set_epoch(4)
    assert pickle.loads(pickle.dumps(dataset))[0]["caption"] == dataset[0]["caption"]


def test_index_out_of_range_and_empty_dataset_raise():
    dataset = PairDataset([{"image": grey_image(), "caption": "a", "image_id": 0}])
    with pytest.raises(IndexError):
        dataset[1]
    with pytest.raises(ValueError, match="no pairs"):
        PairDataset([])
