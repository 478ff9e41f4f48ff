# SPDX-License-Identifier: BSD-3-Clause
"""What images are called in the results of an evaluation: as their source calls them."""

import pytest
from datasets import Dataset

from blip_hf.data.readers.pairs import group_captions, load_pairs
from tests.support.files import write_json, write_json_lines
from tests.support.pairs import COLORS, embedded_pairs


@pytest.mark.parametrize(
    ("images", "ids", "expected"),
    [
        (["a.jpg", "b.jpg"], [40, 30], [40, 30]),
        (["a.jpg", "b.jpg"], [-1, 5], [-1, 5]),
        (["a.jpg", "b.jpg"], ["coco_9", "coco_2"], ["coco_9", "coco_2"]),
        (["a.jpg", "b.jpg"], [9, "coco_2"], ["9", "coco_2"]),
        (["val2014/COCO_val2014_000000391895.jpg", "val2017/000000000042.jpg"], [None, None], [391895, 42]),
        (["COCO_val2014_000000391895.jpg", "b.jpg"], [None, None], ["391895", "b.jpg"]),
        (["sub/a.jpg", "1000092795.jpg"], [None, None], ["sub/a.jpg", "1000092795.jpg"]),
        (["a.jpg", "b.jpg"], [8, None], ["8", "b.jpg"]),
        # The number of the sets of 2014 and 2017 is of one image, but these are two files.
        (["COCO_val2014_000000000042.jpg", "000000000042.jpg"], [None, None], None),
    ],
)
@pytest.mark.parametrize("kind", ["list", "folder", "data set"])
def test_groups_keep_the_ids_of_their_source(images, ids, expected, kind, tmp_path):
    field = "file_name" if kind == "folder" else "image"
    records = [{field: image, "caption": ["x", "y"]} for image in images]
    records = [
        record if own is None else {**record, "image_id": own} for record, own in zip(records, ids, strict=True)
    ]
    if kind == "list":
        pairs = load_pairs(write_json(tmp_path / "list.json", records))
    elif kind == "folder":
        write_json_lines(tmp_path / "metadata.jsonl", records)
        pairs = load_pairs(tmp_path)
    elif any(isinstance(own, str) for own in ids) and any(isinstance(own, int) for own in ids):
        pytest.skip("a column has one type")
    else:
        pairs = load_pairs(Dataset.from_list(records), image_root=tmp_path)
    if expected is None:
        expected = [str(tmp_path / image) for image in images]
    assert [group["image_id"] for group in group_captions(pairs)] == expected


def test_joined_lists_keep_their_ids_unless_two_images_share_one(tmp_path):
    first = write_json(tmp_path / "one.json", [{"image": "a.jpg", "caption": "x", "image_id": 5}])
    for own_id, expected in ((7, [5, 7]), (5, [str(tmp_path / name) for name in ("a.jpg", "b.jpg")])):
        second = write_json(tmp_path / "two.json", [{"image": "b.jpg", "caption": "y", "image_id": own_id}])
        assert [group["image_id"] for group in group_captions(load_pairs([first, second]))] == expected


def test_images_inside_a_data_set_go_by_their_row_without_ids(tmp_path):
    groups = group_captions(load_pairs(embedded_pairs(COLORS)).select([2, 0]))
    assert [group["image_id"] for group in groups] == [2, 0]
