# SPDX-License-Identifier: BSD-3-Clause
"""Images outside the folder of their list are opened only with `allow_outside`."""

import pytest
from datasets import Dataset

from blip_hf.data.readers import find_shards, load_nlvr2, load_pairs, load_vqa
from blip_hf.data.readers.image_root import ImageRoot, OutsideFolderError
from tests.support.files import write_json
from tests.support.images import write_images
from tests.support.sources import read, summary


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, "blue")
    write_images(tmp_path / "lists", "red")
    return tmp_path / "lists"


@pytest.mark.parametrize("path", ["a.png", "b/a.png", "b/../a.png", "a..png", "...", "/data/photos/a.png"])
def test_paths_inside_are_joined(path):
    assert ImageRoot("/data/photos").join(path, "r") in (f"/data/photos/{path}", path)


@pytest.mark.parametrize(
    "path", ["/etc/a.png", "../a.png", "b/../../a.png", "/data/photos2/a.png", "/data/photos/../a.png"]
)
def test_paths_outside_are_refused_with_the_option(path):
    with pytest.raises(OutsideFolderError, match=r"r: image .* is outside the folder '/data/photos'.*--allow_outside"):
        ImageRoot("/data/photos").join(path, "r")
    assert ImageRoot("/data/photos", allow_outside=True).join(path, "r")


@pytest.mark.parametrize("name", ["../blue.png", "{root}/blue.png"])
def test_lists_open_images_outside_only_on_request(name, folder):
    outside = name.format(root=folder.parent)
    source = write_json(folder / "l.json", [{"image": image, "caption": "a"} for image in ("red.png", outside)])
    assert summary(read(source)) == [("l/00000000", ("a",)), ("l/00000001", "outside_folder")]
    assert len(load_pairs(source)) == 1
    assert len(read(source, allow_outside=True)) == len(load_pairs(source, allow_outside=True)) == 2
    assert len(load_pairs(source, image_root=folder.parent)) == (1 if name.startswith("..") else 2)


def test_list_of_absolute_paths_raises_with_the_option(folder):
    source = write_json(folder / "l.json", [{"image": str(folder.parent / "blue.png"), "caption": "a"}])
    with pytest.raises(ValueError, match=r"l.json, record 0: image .*Pass image_root .*allow_outside=True"):
        load_pairs(source)


def test_questions_and_sentences_are_checked(folder):
    questions = [{"image": image, "question": "a?", "answer": "b"} for image in ("red.png", "../blue.png")]
    source = write_json(folder / "q.json", questions)
    assert (len(load_vqa(source)), len(load_vqa(source, allow_outside=True))) == (1, 2)
    sentences = [
        {"images": ["red.png", image], "sentence": "a", "label": True} for image in ("red.png", "../blue.png")
    ]
    source = write_json(folder / "s.json", sentences)
    assert (len(load_nlvr2(source)), len(load_nlvr2(source, allow_outside=True))) == (1, 2)


def test_saved_tables_are_checked_and_objects_are_not(folder):
    dataset = Dataset.from_dict({"image": [str(folder / "red.png")], "caption": ["a"]})
    assert len(load_pairs(dataset)) == 1
    dataset.save_to_disk(folder / "saved")
    with pytest.raises(ValueError, match="outside the folder"):
        load_pairs(folder / "saved")
    assert len(load_pairs(folder / "saved", image_root=folder)) == 1


def test_links_inside_the_folder_are_followed(folder):
    (folder / "link.png").symlink_to(folder.parent / "blue.png")
    source = write_json(folder / "l.json", [{"image": "link.png", "caption": "a"}])
    (sample,) = (item for shard in find_shards(source) for item in shard.samples())
    assert sample.open_image().getpixel((0, 0)) == (0, 0, 255)
