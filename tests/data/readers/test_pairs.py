# SPDX-License-Identifier: BSD-3-Clause
import json
import re
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict

from blip_hf.data.pairs import PairDataset
from blip_hf.data.readers import group_captions, load_pairs
from blip_hf.data.scenes import Scenes
from tests.support.files import write_json, write_json_lines
from tests.support.pairs import COLORS, draw_photos, embedded_pairs


datasets.disable_progress_bars()


@pytest.fixture
def photos(tmp_path) -> Path:
    return draw_photos(tmp_path)


def columns(pairs: Dataset) -> tuple[list[str], list[int]]:
    return pairs["caption"][:], pairs["image_id"][:]


def colors_of(pairs: Dataset) -> list[tuple[int, int, int]]:
    return [item["image"].getpixel((0, 0)) for item in PairDataset(pairs)]


# JSON lists


def test_json_list_has_one_row_per_caption(photos):
    source = write_json(
        photos / "train.json",
        [
            {"image": "images/red.png", "caption": ["A red square.", "red"], "image_id": 30},
            {"image": "images/blue.png", "caption": "blue", "image_id": 10},
            {"image": "images/red.png", "caption": "a red one", "image_id": 30},
        ],
    )
    pairs = load_pairs(source)
    assert pairs.column_names == ["image", "caption", "image_id", "source_id"]
    assert columns(pairs) == (["A red square.", "red", "blue", "a red one"], [30, 30, 10, 30])
    assert pairs[2]["image"] == str(photos / "images" / "blue.png")
    assert colors_of(pairs) == [(255, 0, 0), (255, 0, 0), (0, 0, 255), (255, 0, 0)]


def test_relative_paths_are_resolved_against_image_root(photos, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("lists")
    absolute = str(photos / "images" / "lime.png")
    source = write_json(
        elsewhere / "a.json", [{"image": "red.png", "caption": "a"}, {"image": absolute, "caption": "b"}]
    )
    pairs = load_pairs(str(source), image_root=photos / "images")
    assert pairs["image"][:] == [str(photos / "images" / "red.png"), absolute]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([4, 9, 4], [4, 9, 4]),
        (["coco_9", "coco_2", "coco_9"], [0, 1, 0]),
        ([-1, 5, -1], [0, 1, 0]),
        ([None, None, None], [0, 1, 0]),
        ([8, None, 8], [0, 1, 0]),
    ],
)
def test_image_ids_are_kept_or_numbered(ids, expected, tmp_path):
    images = ["a.jpg", "b.jpg", "a.jpg"]
    records = [{"image": image, "caption": "x", "image_id": i} for image, i in zip(images, ids, strict=True)]
    assert load_pairs(write_json(tmp_path / "list.json", records))["image_id"][:] == expected


def test_joined_lists_are_numbered_by_image(tmp_path):
    one = write_json(tmp_path / "one.json", [{"image": "a.jpg", "caption": "x", "image_id": 0}])
    records = [{"image": "b.jpg", "caption": "y", "image_id": 0}, {"image": "a.jpg", "caption": "z", "image_id": 1}]
    two = write_json_lines(tmp_path / "two.jsonl", records)
    assert columns(load_pairs([one, str(two)])) == (["x", "y", "z"], [0, 1, 0])


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_json_lines_are_split_only_at_line_feeds(separator, tmp_path):
    captions = [f"a{separator}b", "c"]
    lines = [json.dumps({"image": "a.jpg", "caption": caption}, ensure_ascii=False) for caption in captions]
    path = tmp_path / "list.jsonl"
    path.write_bytes(("\ufeff" + "\r\n\r\n".join(lines) + "\n \n").encode())
    assert load_pairs(path)["caption"][:] == captions


def test_json_list_may_start_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"image": "a.jpg", "caption": "a"}]), encoding="utf-8-sig")
    assert load_pairs(path)["caption"][:] == ["a"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"image": "a.jpg", "caption": 3},
            r"list.json, record 1: field 'caption' is int, expected str or list of str",
        ),
        (
            {"image": "a.jpg", "caption": ["a", 3]},
            r"record 1: field 'caption' is list of int, str, expected str or list",
        ),
        ({"image": "a.jpg", "caption": []}, r"record 1: field 'caption' is \[\], expected str or list of str"),
        ({"image": "a.jpg", "caption": None}, r"record 1: field 'caption' is None"),
        ({"image": "a.jpg"}, r"record 1: field 'caption' is missing \(there are: image\)"),
        ({"url": "http://a", "caption": "a"}, r"record 1: field 'image' is missing \(there are: url, caption\)"),
        ({"image": 5, "caption": "a"}, r"record 1: field 'image' is int, expected the path of an image"),
        ({"image": "", "caption": "a"}, r"record 1: field 'image' is '', expected the path"),
        (
            {"image": "a.jpg", "caption": "a", "image_id": [1]},
            r"record 1: field 'image_id' is list of int, expected int or",
        ),
        ("a.jpg", r"record 1 is a str, expected an object with 'image'"),
    ],
)
def test_invalid_records_are_skipped_with_their_number(record, message, tmp_path, caplog):
    source = write_json(tmp_path / "list.json", [{"image": "a.jpg", "caption": "fine"}, record])
    assert load_pairs(source)["caption"][:] == ["fine"]
    assert re.search(rf"list.json: skipped 1 bad_record, the first list/00000001 \(.*{message}", caplog.text)
    source = write_json(tmp_path / "list.json", [record])
    with pytest.raises(ValueError, match=message.replace("record 1", "record 0")):
        load_pairs(source)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "There are no records in"),
        ("3", "contains a int, expected a list of records"),
        ('{"data": []}', "contains an object with 'data', expected a list of records"),
        ('[{"image": ', "cannot be parsed"),
        ('{"image": "a"}\n{"image": "b"}', "in a .jsonl file one record a line"),
    ],
)
def test_files_without_a_list_raise(content, message, tmp_path):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_pairs(tmp_path / "bad.json")


# Folders and datasets


@pytest.mark.parametrize("field", ["caption", "text"])
def test_image_folder_is_read_by_its_metadata(field, photos):
    records = [{"file_name": "red.png", field: "a red one"}, {"file_name": "blue.png", field: ["blue", "a blue one"]}]
    write_json_lines(photos / "images" / "metadata.jsonl", records)
    pairs = load_pairs(photos / "images")
    assert columns(pairs) == (["a red one", "blue", "a blue one"], [0, 1, 1])
    assert colors_of(pairs) == [(255, 0, 0), (0, 0, 255), (0, 0, 255)]


def test_image_folder_may_have_one_folder_per_split(photos):
    write_json_lines(photos / "test" / "metadata.jsonl", [{"file_name": "../images/lime.png", "text": "green"}])
    assert colors_of(load_pairs(photos, split="test", allow_outside=True)) == [(0, 255, 0)]
    with pytest.raises(ValueError, match="has images without captions"):
        load_pairs(photos)


def test_image_folder_may_have_its_metadata_in_columns(photos):
    # With the byte order mark of spreadsheets.
    rows = '\ufefffile_name,text,image_id\nred.png,"red, and square",7\nblue.png,blue,3\nred.png,"a ""red"" one",7\n'
    (photos / "images" / "metadata.csv").write_text(rows, encoding="utf-8")
    pairs = load_pairs(photos / "images")
    assert columns(pairs) == (["red, and square", "blue", 'a "red" one'], [7, 3, 7])
    assert colors_of(pairs) == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]


@pytest.mark.parametrize(("ids", "expected"), [("x,y,x", [0, 1, 0]), ("4,,4", [0, 1, 0]), ("-1,2,-1", [0, 1, 0])])
def test_non_integer_ids_in_columns_are_numbered(ids, expected, tmp_path):
    rows = [f"{image},text,{i}" for image, i in zip(("a.png", "b.png", "a.png"), ids.split(","), strict=True)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,text,image_id", *rows]))
    assert load_pairs(tmp_path)["image_id"][:] == expected


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "file_name,text\nb.png,a dog, running",
            r"metadata.csv, record 0 has 1 more fields.*double quotes",
        ),
        ("file_name,text\nb.png", r"metadata.csv, record 0: field 'text' is None"),
        ("image,text\na.png,one", r"metadata.csv, record 0: field 'file_name' is missing \(there are: image, text\)"),
        ("file_name,text", r"There are no records in .*metadata.csv"),
    ],
)
def test_invalid_columns_raise_with_their_names(rows, message, tmp_path):
    (tmp_path / "metadata.csv").write_text(rows)
    with pytest.raises(ValueError, match=message):
        load_pairs(tmp_path)


def test_metadata_without_file_name_raises(tmp_path):
    write_json_lines(tmp_path / "metadata.jsonl", [{"image": "a.png", "text": "a"}])
    with pytest.raises(ValueError, match=r"metadata.jsonl, record 0: field 'file_name' is missing"):
        load_pairs(tmp_path)


def test_embedded_images_stay_encoded_and_in_order(photos):
    pairs = load_pairs(embedded_pairs([["red", "a red one"], ["green"], ["blue", "a blue one", "sky"]]))
    assert columns(pairs) == (["red", "a red one", "green", "blue", "a blue one", "sky"], [0, 0, 1, 2, 2, 2])
    assert isinstance(pairs[0]["image"]["bytes"], bytes)
    assert colors_of(pairs) == [(255, 0, 0)] * 2 + [(0, 255, 0)] + [(0, 0, 255)] * 3


@pytest.mark.parametrize("field", ["caption", "captions", "text"])
def test_datasets_may_name_captions_differently(field, photos):
    images = embedded_pairs(COLORS).remove_columns("caption")
    dataset = images.add_column(field, ["red", "green", "blue"])
    assert columns(load_pairs(dataset)) == (["red", "green", "blue"], [0, 1, 2])


def test_saved_dataset_is_memory_mapped_with_each_image_once(photos):
    dataset = embedded_pairs([["red", "a red one"], ["green"], ["blue"]])
    dataset.save_to_disk(photos / "saved")
    pairs = load_pairs(photos / "saved")
    assert colors_of(pairs) == [(255, 0, 0)] * 2 + [(0, 255, 0), (0, 0, 255)]
    stored = Dataset.load_from_disk(photos / "saved").cache_files
    assert {file["filename"] for file in pairs.cache_files} == {file["filename"] for file in stored}


def test_splits_are_selected_by_name(photos):
    splits = DatasetDict({"train": embedded_pairs(COLORS), "test": embedded_pairs(COLORS).select([2])})
    splits.save_to_disk(photos / "splits")
    for source in (splits, photos / "splits"):
        assert len(load_pairs(source)) == 3
        assert colors_of(load_pairs(source, split="test")) == [(0, 0, 255)]
        with pytest.raises(ValueError, match="no split 'val'; pass split= one of 'train', 'test'"):
            load_pairs(source, split="val")


def test_shuffled_dataset_keeps_images_with_their_captions(photos):
    dataset = embedded_pairs([["red", "a red one"], ["green"], ["blue"]]).select([2, 0])
    pairs = load_pairs(dataset)
    assert pairs["caption"][:] == ["blue", "red", "a red one"]
    assert colors_of(pairs) == [(0, 0, 255), (255, 0, 0), (255, 0, 0)]


def test_dataset_of_paths_is_numbered_by_path(photos):
    dataset = Dataset.from_dict({"image": ["red.png", "blue.png", "red.png"], "text": ["a", "b", "c"]})
    pairs = load_pairs(dataset, image_root=photos / "images")
    assert columns(pairs) == (["a", "b", "c"], [0, 1, 0])
    images = dataset.map(lambda row: {"image": str(photos / "images" / row["image"])})
    linked = load_pairs(images.cast_column("image", datasets.Image()))
    assert linked["image_id"][:] == [0, 1, 0]
    assert colors_of(pairs) == colors_of(linked) == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"picture": ["a.jpg"], "caption": ["a"]}, r"has the columns picture, caption, expected 'image'"),
        ({"image": [3], "caption": ["a"]}, r"Value\('int64'\) in the column 'image'"),
        ({"image": ["a.jpg"], "label": [0]}, r"has the columns image, label, expected .* and one of 'caption'"),
        ({"image": ["a.jpg", "b.jpg"], "caption": [1, 2]}, r"record 0: field 'caption' is int"),
    ],
)
def test_invalid_datasets_raise(data, message):
    with pytest.raises(ValueError, match=message):
        load_pairs(Dataset.from_dict(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"image": ["a.jpg", None], "caption": ["a", "b"]}, "record 1: field 'image' is None"),
        ({"image": ["a.jpg", "b.jpg"], "caption": ["a", None]}, "record 1: field 'caption' is None"),
    ],
)
def test_invalid_rows_are_skipped_with_their_number(data, message, caplog):
    assert load_pairs(Dataset.from_dict(data))["caption"][:] == ["a"]
    assert f"skipped 1 bad_record, the first record 1 (data set dataset, {message}" in caplog.text


def test_empty_dataset_raises(photos):
    with pytest.raises(ValueError, match="There are no records in dataset"):
        load_pairs(embedded_pairs(COLORS).select([]))


# Grouping


def test_groups_hold_all_captions_of_an_image_in_order(photos):
    pairs = load_pairs(embedded_pairs([["red", "a red one"], ["green"], ["blue", "sky"]])).select([3, 0, 4, 1])
    groups = group_captions(pairs)
    assert len(groups) == 2
    assert [group["captions"] for group in groups] == [["blue", "sky"], ["red", "a red one"]]
    assert [group["image_id"] for group in groups] == [2, 0]
    assert groups[1]["image"] == pairs[1]["image"]


def test_records_in_memory_are_grouped():
    scenes = Scenes(5)
    groups = group_captions(scenes)
    assert [group["captions"] for group in groups] == [[record["caption"]] for record in scenes]
    assert groups[-1]["image"].tobytes() == scenes[4]["image"].tobytes()
    with pytest.raises(IndexError):
        groups[5]


# Names of images in results


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
        # In COCO 2014 and 2017 the number is of one image, but these are two files.
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


def test_embedded_images_without_ids_are_numbered_by_row(tmp_path):
    groups = group_captions(load_pairs(embedded_pairs(COLORS)).select([2, 0]))
    assert [group["image_id"] for group in groups] == [2, 0]


# Real photos


def test_flickr8k_lists_load(data_root):
    train = load_pairs(data_root / "flickr8k" / "train.json")
    assert len(train) == 30_000
    assert len(set(train["image_id"])) == 6_000
    val = load_pairs(data_root / "flickr8k" / "val.json")
    assert len(val) == 5_000
    groups = group_captions(val)
    assert val["image_id"][::5] == list(range(1_000))
    assert groups[0]["image_id"] == "images/2090545563_a4e66ec76b.jpg"
    assert {len(group["captions"]) for group in groups} == {5}
    item = PairDataset(val)[0]
    assert item["image"].size == (160, 160)
    assert (
        item["caption"] == "the boy laying face down on a skateboard is being pushed along the ground by another boy"
    )
