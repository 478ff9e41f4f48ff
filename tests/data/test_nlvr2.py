# SPDX-License-Identifier: BSD-3-Clause
"""NLVR2: files, drawn pairs, the dataset, its transform, and its collator."""

import json
import random
import re

import numpy as np
import pytest

from blip_hf.data.nlvr2 import (
    BlipNlvr2Collator,
    Nlvr2Dataset,
    Nlvr2TrainTransform,
)
from blip_hf.data.readers import load_nlvr2
from blip_hf.data.scenes import SceneNlvr2
from tests.support.files import write_json, write_json_lines
from tests.support.images import plain_image
from tests.support.vocabularies import make_scene_processor


OFFICIAL = {
    "identifier": "dev-850-0-1",
    "sentence": "The left image has two dogs.",
    "label": "True",
    "left_url": "https://example.org/a.jpg",
    "right_url": "https://example.org/b.jpg",
}
OURS = {"images": ["dev/dev-850-0-img0.png", "dev/dev-850-0-img1.png"], "sentence": "two dogs", "label": "False"}


@pytest.fixture(scope="module")
def processor():
    return make_scene_processor()


# Files


@pytest.mark.parametrize("name", ["dev.json", "dev.jsonl"])
def test_nlvr2_lines_name_their_images(tmp_path, name):
    train = OFFICIAL | {"identifier": "train-10171-3-0", "directory": 54, "label": "False"}
    records = load_nlvr2(write_json_lines(tmp_path / name, [OFFICIAL, train]), image_root="images")
    assert list(records) == [
        {
            "images": ["images/dev-850-0-img0.png", "images/dev-850-0-img1.png"],
            "sentence": "The left image has two dogs.",
            "label": True,
            "sentence_id": "dev-850-1",
        },
        {
            "images": ["images/54/train-10171-3-img0.png", "images/54/train-10171-3-img1.png"],
            "sentence": "The left image has two dogs.",
            "label": False,
            "sentence_id": "train-10171-0",
        },
    ]


@pytest.mark.parametrize("start", ["\ufeff", "\n  \n", "\ufeff\n"])
def test_json_lines_are_detected_after_a_bom_and_blank_lines(tmp_path, start):
    lines, whole = tmp_path / "lines.json", tmp_path / "list.json"
    record = json.dumps({**OFFICIAL, "sentence": "two\u2028dogs"}, ensure_ascii=False)
    lines.write_text(f"{start}{record}\n\n{record}\n", encoding="utf-8")
    whole.write_text(f"{start}[{record}, {record}]", encoding="utf-8")
    assert load_nlvr2(lines)[:] == load_nlvr2(whole)[:]
    assert [read["sentence"] for read in load_nlvr2(lines)] == ["two\u2028dogs"] * 2


def test_paths_of_blip_lists_are_relative_to_the_list(tmp_path):
    path = tmp_path / "nlvr_dev.json"
    write_json(path, [OURS, OURS | {"label": True}])
    first, second = load_nlvr2(path)
    assert first["images"] == [str(tmp_path / image) for image in OURS["images"]]
    assert (first["label"], second["label"]) == (False, True)
    assert first["sentence_id"] == "two dogs"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (OFFICIAL | {"identifier": "dev-850"}, "field 'identifier' is 'dev-850', expected split-set-pair-sentence"),
        (OFFICIAL | {"label": "Maybe"}, "field 'label' is 'Maybe', expected 'True' or 'False'"),
        (OFFICIAL | {"label": 1}, "field 'label' is int"),
        (OFFICIAL | {"sentence": None}, "field 'sentence' is None"),
        (OURS | {"images": ["a.png"]}, "field 'images' is list of str, expected the paths of two images"),
        ({"sentence": "two dogs", "label": "True"}, "field 'images' is missing"),
        ("two dogs", "is a str, expected an object"),
    ],
)
def test_invalid_records_raise_with_record_and_field(tmp_path, record, message):
    path = tmp_path / "list.json"
    write_json(path, [record])
    with pytest.raises(ValueError, match=re.escape(f"{path}, record 0") + ".*" + re.escape(message)):
        load_nlvr2(path)


@pytest.mark.parametrize(("text", "message"), [("[]", "an empty list"), ('"a"', "a str"), ("[", "cannot be parsed")])
def test_files_without_records_raise(tmp_path, text, message):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_nlvr2(tmp_path / "list.json")
    with pytest.raises(ValueError, match="does not exist"):
        load_nlvr2(tmp_path / "other.json")


# Scenes


def test_scene_pairs_depend_only_on_their_index_and_half_are_true():
    pairs, later = SceneNlvr2(40), SceneNlvr2(10, start=20)
    assert [record["sentence"] for record in later] == [pairs[i]["sentence"] for i in range(20, 30)]
    for one, other in zip(later[3]["images"], pairs[23]["images"], strict=True):
        assert np.array_equal(one, other)
    assert sum(record["label"] for record in pairs) == 20
    assert len({record["sentence"] for record in pairs}) > 10


def test_the_sentence_alone_does_not_predict_its_label():
    # The most frequent label of each sentence must not be accurate.
    truths: dict[str, list[bool]] = {}
    for record in SceneNlvr2(400, image_size=32):
        truths.setdefault(record["sentence"], []).append(record["label"])
    best_guess = sum(max(labels.count(True), labels.count(False)) for labels in truths.values()) / 400
    assert best_guess < 0.7


# Data set


def test_broken_images_and_empty_sentences_are_skipped_and_counted(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    broken = {
        "images": [plain_image("red", (40, 40)), tmp_path / "broken.png"],
        "sentence": "both are red",
        "label": True,
    }
    wordless = {"images": [plain_image("red", (40, 40))] * 2, "sentence": "...", "label": True}
    good = {
        "images": [plain_image("red", (40, 40)), plain_image("blue", (40, 40))],
        "sentence": "Both are red!",
        "label": False,
    }
    dataset = Nlvr2Dataset([broken, wordless, good])
    items = [dataset.get(i) for i in range(3)]
    assert items[0] is items[1] is None
    assert dataset[0]["sentence"] == items[2]["sentence"]
    assert dataset.num_skipped == 2
    assert (items[2]["sentence"], items[2]["sentence_id"]) == ("both are red", "Both are red!")
    assert [image.getpixel((0, 0)) for image in items[2]["images"]] == [(255, 0, 0), (0, 0, 255)]
    assert dataset.caption_lengths() == [3, 1, 3]


def test_without_a_transform_nothing_is_random():
    record = {
        "images": [plain_image("red", (40, 40)), plain_image("blue", (40, 40))],
        "sentence": "red is left of blue",
        "label": True,
    }
    dataset = Nlvr2Dataset([record] * 30)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        for i in range(30):
            assert dataset[i]["sentence"] == "red is left of blue"
            assert [image.getpixel((0, 0)) for image in dataset[i]["images"]] == [(255, 0, 0), (0, 0, 255)]


def test_long_sentences_keep_forty_words():
    record = {"images": [plain_image("red", (40, 40))] * 2, "sentence": "word " * 50, "label": True}
    assert len(Nlvr2Dataset([record])[0]["sentence"].split()) == 40


# Transform


def half_and_half(left, right):
    image = plain_image(right, (40, 40))
    image.paste(left, (0, 0, 20, 40))
    return image


def side_by_side(images):
    """Colours of both images at the height of the middle, from left to right."""
    return [image.getpixel((x, 16)) for image in images for x in (4, 27)]


def test_mirroring_a_pair_is_mirroring_one_wide_image():
    transform = Nlvr2TrainTransform(32, min_scale=1.0, augment=False)
    pair = [half_and_half("red", "lime"), half_and_half("blue", "yellow")]
    untouched = side_by_side(image.resize((32, 32)) for image in pair)
    outcomes = []
    for seed in range(20):
        images, sentence = transform(pair, "The left image, red on the left", random.Random(seed))
        is_mirrored = sentence == "The right image, red on the right"
        assert is_mirrored or sentence == "The left image, red on the left"
        assert side_by_side(images) == (untouched[::-1] if is_mirrored else untouched)
        outcomes.append(is_mirrored)
    assert 4 < sum(outcomes) < 16


def test_blip_flips_mirror_each_image_independently():
    pair = [half_and_half("red", "lime"), half_and_half("blue", "yellow")]
    untouched = side_by_side(image.resize((32, 32)) for image in pair)
    seen = {"always": set(), "never": set()}
    for flip, orders in seen.items():
        transform = Nlvr2TrainTransform(32, min_scale=1.0, flip=flip, augment=False)
        for seed in range(40):
            images, sentence = transform(pair, "leftmost", random.Random(seed))
            orders.add((sentence, *(untouched.index(colour) for colour in side_by_side(images))))
    assert seen["never"] == {("leftmost", 0, 1, 2, 3)}
    assert len(seen["always"]) == 8  # two orders of the pair, two sides of either image
    assert {(order[0], order[1] > 1) for order in seen["always"]} == {("leftmost", False), ("rightmost", True)}
    with pytest.raises(ValueError, match="flip='sometimes' is unknown"):
        Nlvr2TrainTransform(32, flip="sometimes")


def test_transformed_items_repeat_by_seed_epoch_and_index():
    records = SceneNlvr2(6, image_size=32)
    dataset = Nlvr2Dataset(records, Nlvr2TrainTransform(32), seed=3)
    again = Nlvr2Dataset(records, Nlvr2TrainTransform(32), seed=3)
    assert np.array_equal(dataset[4]["images"][1], again[4]["images"][1])
    again.set_epoch(1)
    assert not np.array_equal(dataset[4]["images"][1], again[4]["images"][1])


# Collator


def test_collator_keeps_pairs_together(processor):
    records = [
        {
            "images": [plain_image("black", (40, 40)), plain_image("white", (40, 40))],
            "sentence": "both images show a star",
            "label": True,
        },
        {
            "images": [plain_image("white", (40, 40)), plain_image("black", (40, 40))],
            "sentence": "both images show something red",
            "label": False,
        },
        {"images": [plain_image("white", (40, 40)), "missing.png"], "sentence": "both", "label": False},
    ]
    batch = BlipNlvr2Collator(processor)(records)
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "labels"}
    assert batch["pixel_values"].shape == (2, 2, 3, 32, 32)
    is_bright = batch["pixel_values"].mean(dim=(2, 3, 4)) > 0
    assert is_bright.tolist() == [[False, True], [True, False]]
    assert batch["input_ids"][:, 0].tolist() == [processor.enc_token_id] * 2
    assert batch["labels"].tolist() == [1, 0]
    with pytest.raises(ValueError, match="None of the 1 records of this batch can be used"):
        BlipNlvr2Collator(processor)(records[2:])
