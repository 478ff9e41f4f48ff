# SPDX-License-Identifier: BSD-3-Clause
"""Small annotation files in the published formats."""

import copy
import os

import datasets
import pytest

from blip_hf.data.readers import group_captions, load_nocaps, load_pairs
from tests.support.files import write_json


datasets.disable_progress_bars()

COCO = {
    "info": {"description": "COCO 2017 Dataset", "year": 2017},
    "licenses": [],
    "images": [
        {"license": 4, "file_name": "000000397133.jpg", "height": 427, "width": 640, "id": 397133},
        {"license": 1, "file_name": "000000037777.jpg", "height": 230, "width": 352, "id": 37777},
        {"license": 1, "file_name": "000000000001.jpg", "height": 230, "width": 352, "id": 1},
    ],
    # Captions of one image are not consecutive, and the last image has none.
    "annotations": [
        {"image_id": 37777, "id": 1, "caption": "A kitchen."},
        {"image_id": 397133, "id": 2, "caption": "A man in a kitchen."},
        {"image_id": 37777, "id": 3, "caption": "Oranges on a table."},
    ],
}


def karpathy_image(filename, split, *captions, **fields):
    sentences = [{"tokens": caption.lower().split(), "raw": caption, "imgid": 0, "sentid": 0} for caption in captions]
    return {"filename": filename, "split": split, "sentids": [0], "sentences": sentences, **fields}


KARPATHY_COCO = {
    "images": [
        karpathy_image("COCO_val2014_8.jpg", "test", "A dog.", "Dog", filepath="val2014", cocoid=8, imgid=0),
        karpathy_image("COCO_train2014_5.jpg", "train", "A cat.", filepath="train2014", cocoid=5, imgid=1),
        karpathy_image("COCO_val2014_3.jpg", "restval", "A cow.", filepath="val2014", cocoid=3, imgid=2),
    ],
    "dataset": "coco",
}
KARPATHY_FLICKR = {
    "images": [
        karpathy_image("1000092795.jpg", "train", "Two men.", "Men", imgid=0),
        karpathy_image("10002456.jpg", "val", "A crane.", imgid=1),
    ],
    "dataset": "flickr30k",
}
NOCAPS = {
    "images": [
        {"id": 0, "open_images_id": "0013ea", "file_name": "0013ea.jpg", "domain": "out-domain"},
        {"id": 1, "open_images_id": "004e21", "file_name": "004e21.jpg", "domain": "in-domain"},
    ],
    "annotations": [{"image_id": 1, "id": 0, "caption": "A bird."}, {"image_id": 0, "id": 1, "caption": "An owl."}],
}


@pytest.fixture
def write(tmp_path):
    def write_file(content, name="file.json"):
        return write_json(tmp_path / name, content)

    return write_file


def rows(pairs):
    return list(zip(pairs["image"][:], pairs["caption"][:], pairs["image_id"][:], strict=True))


def changed(content, *keys, to):
    """A copy with one value set, or deleted if `to` is `None`."""
    content = copy.deepcopy(content)
    place = content
    for key in keys[:-1]:
        place = place[key]
    if to is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = to
    return content


# COCO and Karpathy


def test_coco_captions_are_joined_with_their_images_by_coco_ids(write, tmp_path):
    path = write(COCO)
    assert rows(load_pairs(path, image_root=tmp_path)) == [
        (str(tmp_path / "000000397133.jpg"), "A man in a kitchen.", 397133),
        (str(tmp_path / "000000037777.jpg"), "A kitchen.", 37777),
        (str(tmp_path / "000000037777.jpg"), "Oranges on a table.", 37777),
    ]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("restval", [("val2014/COCO_val2014_3.jpg", "A cow.", 3)]),
        ("test", [("val2014/COCO_val2014_8.jpg", "A dog.", 8), ("val2014/COCO_val2014_8.jpg", "Dog", 8)]),
        (
            "train",
            [("train2014/COCO_train2014_5.jpg", "A cat.", 5), ("val2014/COCO_val2014_3.jpg", "A cow.", 3)],
        ),
    ],
)
def test_karpathy_split_of_coco_has_coco_ids(split, expected, write, tmp_path):
    pairs = load_pairs(write(KARPATHY_COCO), split=split)
    assert rows(pairs) == [(os.path.join(tmp_path, *path.split("/")), text, i) for path, text, i in expected]


def test_karpathy_split_of_flickr_has_its_own_ids_and_no_folders(write, tmp_path):
    path = write(KARPATHY_FLICKR)
    images = tmp_path / "1000092795.jpg", tmp_path / "10002456.jpg"
    assert rows(load_pairs(path)) == [(str(images[0]), "Two men.", 0), (str(images[0]), "Men", 0)]
    assert rows(load_pairs(path, split="val")) == [(str(images[1]), "A crane.", 1)]


def test_published_files_are_joined_with_lists_and_numbered_by_image(write, tmp_path):
    own = write([{"image": "000000037777.jpg", "caption": "mine", "image_id": 397133}], "own.json")
    pairs = load_pairs([write(COCO), own])
    assert pairs["caption"][:] == ["A man in a kitchen.", "A kitchen.", "Oranges on a table.", "mine"]
    assert pairs["image_id"][:] == [0, 1, 1, 1]


def test_missing_split_raises_with_its_name(write):
    with pytest.raises(ValueError, match=r"no split 'val'; pass split= one of 'test', 'train', 'restval'\."):
        load_pairs(write(KARPATHY_COCO), split="val")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(COCO, "annotations", 1, "caption", to=None), r"annotations, record 1: field 'caption' is missing"),
        (
            changed(COCO, "annotations", 1, "caption", to=["a"]),
            r"annotations, record 1: field 'caption' is list of str",
        ),
        (
            changed(COCO, "annotations", 2, "image_id", to=5),
            r"annotations, record 2: image_id 5 is not among 'images'",
        ),
        (
            changed(COCO, "annotations", 2, to="a cat"),
            r"annotations, record 2 is a str, expected an object with 'capt",
        ),
        (changed(COCO, "annotations", to=[]), r": field 'annotations' is \[\], expected a list of records"),
        (
            changed(COCO, "images", 1, "file_name", to=None),
            r"images, record 1: field 'file_name' is missing \(there ar",
        ),
        (changed(COCO, "images", 1, "id", to=None), r"images, record 1: field 'id' is missing"),
        (changed(COCO, "images", to={}), r": field 'images' is dict, expected a list of records"),
        (changed(KARPATHY_COCO, "images", 0, "split", to=None), r"images, record 0: field 'split' is missing"),
        (changed(KARPATHY_COCO, "images", 1, "filename", to=3), r"images, record 1: field 'filename' is int"),
        (changed(KARPATHY_COCO, "images", 1, "sentences", to=[]), r"images, record 1: field 'sentences' is \[\]"),
        (
            changed(KARPATHY_COCO, "images", 1, "sentences", 0, "raw", to=None),
            r"images, record 1, sentences, record 0: field 'raw' is missing \(there are: tokens, imgid, sentid\)",
        ),
        (changed(COCO, "annotations", to=None), r"images, record 0: field 'split' is missing"),
    ],
)
def test_invalid_records_raise_with_record_and_field(content, message, write):
    with pytest.raises(ValueError, match=rf"file\.json.*{message}"):
        load_pairs(write(content))


# NoCaps


def test_nocaps_has_captions_and_domains(write, tmp_path):
    assert load_nocaps(write(NOCAPS), image_root="val") == [
        {"image": os.path.join("val", "0013ea.jpg"), "captions": ["An owl."], "image_id": 0, "domain": "out-domain"},
        {"image": os.path.join("val", "004e21.jpg"), "captions": ["A bird."], "image_id": 1, "domain": "in-domain"},
    ]
    assert load_pairs(write(NOCAPS))["caption"][:] == ["An owl.", "A bird."]


def test_nocaps_without_captions_is_read_in_both_forms(write, tmp_path):
    info = changed(changed(NOCAPS, "annotations", to=None), "images", 1, "domain", to=None)
    images = load_nocaps(write(info))
    assert [image["captions"] for image in images] == [[], []]
    assert [image["domain"] for image in images] == ["out-domain", None]
    own = load_nocaps(write([{"image": "val/0013ea.jpg", "img_id": 0}]))
    assert own == [{"image": str(tmp_path / "val" / "0013ea.jpg"), "captions": [], "image_id": 0, "domain": None}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"image": "a.jpg", "img_id": 0}, {"image": "b.jpg"}], r"record 1: field 'img_id' is missing"),
        (["a.jpg"], r"record 0 is a str, expected an object with 'img_id'"),
        ({"data": []}, r"field 'images' is missing \(there are: data\)"),
        (changed(NOCAPS, "images", 1, "domain", to=3), r"image 1: field 'domain' is int, expected str"),
        (3, r"is a int, expected an object with 'images'"),
    ],
)
def test_invalid_nocaps_files_raise(content, message, write):
    with pytest.raises(ValueError, match=rf"file\.json.*{message}"):
        load_nocaps(write(content))


# Real annotations


def test_a_sample_of_coco_loads(data_root):
    folder = data_root / "coco_sample"
    pairs = load_pairs(folder / "captions_val2017_sample.json", image_root=folder / "images")
    groups = group_captions(pairs)
    assert len(groups) == 159
    assert {len(group["captions"]) >= 5 for group in groups} == {True}
    # The number in a file name is the image's id.
    assert all(int(os.path.splitext(os.path.basename(group["image"]))[0]) == group["image_id"] for group in groups)
    assert all(os.path.isfile(group["image"]) for group in groups)
