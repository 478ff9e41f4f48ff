# SPDX-License-Identifier: BSD-3-Clause
"""Large annotation files of COCO and Karpathy: the same table, skipped records and errors as if parsed as a whole."""

import random
import tracemalloc
from functools import partial

import datasets
import pytest

from blip_hf.data.readers import find_shards, json_files, load_images, load_pairs, places
from blip_hf.data.readers.usable import recorded_files
from tests.support.files import write_json, write_json_lines


def coco(*annotations, images=((9, "a.jpg"), (4, "b.jpg"), (7, "c.jpg"))):
    return {
        "info": {"year": 2017},
        "images": [{"id": image_id, "file_name": path, "height": 4} for image_id, path in images],
        "licenses": [{"id": 1, "url": "x"}],
        "annotations": [{"image_id": image_id, "id": 0, "caption": caption} for image_id, caption in annotations],
    }


def karpathy(*images):
    return {
        "images": [
            {"filename": path, "split": split, "imgid": number, "sentences": [{"raw": text} for text in captions]}
            for number, (path, split, *captions) in enumerate(images)
        ],
        "dataset": "made",
    }


COCO = coco((4, "one"), (9, "two"), (4, "three"), (9, "four"), (4, "five"))
KARPATHY = karpathy(("a.jpg", "test", "one", "two"), ("b.jpg", "train", "three"), ("c.jpg", "restval", "four"))
FILES = {
    "COCO": COCO,
    "annotations first": dict(reversed(COCO.items())),
    "text ids": coco(("y", "one"), ("x", "two"), images=[("x", "a.jpg"), ("y", "b.jpg")]),
    "texts and numbers": coco(("4", "one"), (4, "two"), images=[(4, "a.jpg"), ("4", "b.jpg")]),
    "empty text and zero": coco(("", "one"), (0, "two"), images=[(0, "a.jpg"), ("", "b.jpg")]),
    "negative ids": coco((-4, "one"), (2**63 - 1, "two"), images=[(-4, "a.jpg"), (2**63 - 1, "b.jpg")]),
    "equal ids": coco((9, "one"), (4, "two"), images=[(9, "a.jpg"), (4, "b.jpg"), (9, "c.jpg"), (9, "d.jpg")]),
    "paths outside": coco((9, "one"), (4, "two"), images=[(9, "/a.jpg"), (4, "b.jpg")]),
    "all paths outside": coco((9, "one"), images=[(9, "../a.jpg")]),
    "invalid Unicode": coco((9, "one"), (4, "\ud800"), images=[(9, "a.jpg"), (4, "b.jpg"), ("\ud800", "c.jpg")]),
    "unknown image": coco((9, "one"), (5, "two"), (4, ["three"])),
    "bad caption first": coco((9, "one"), (4, ["two"]), (5, "three")),
    "bad caption of an unknown image": coco((9, "one"), (5, ["two"])),
    "bad id": coco((9, "one"), (True, "two")),
    "huge id": coco((9, "one"), (10**30, "two")),
    "bad path": coco((9, "one"), images=[(9, "a.jpg"), (4, 5)]),
    "bad image and caption": coco((9, 5), images=[(9, "a.jpg"), (None, "b.jpg")]),
    "no annotations": coco(),
    "annotations is an object": COCO | {"annotations": {"a": 1}},
    "images is an object": COCO | {"images": {"a": 1}},
    "images is null": COCO | {"images": None},
    "no images": COCO | {"images": []},
    "an image is a number": COCO | {"images": [5]},
    "other keys": {"data": [1], "more": 2},
    "empty object": {},
    "Karpathy": KARPATHY,
    "Karpathy without the split": karpathy(("a.jpg", "test", "one")),
    "Karpathy with a bad record": karpathy(("a.jpg", "train", "one"), ("b.jpg", "test", 5), ("c.jpg", "train", 5)),
    "Karpathy without sentences": karpathy(("a.jpg", "train", "one"), ("b.jpg", "train")),
    "images alone": {"images": COCO["images"]},
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(places, "_ROWS_PER_WRITE", 2)
    return tmp_path / "cache"


def outcome(load, source, max_bytes, monkeypatch, caplog):
    """The table, counts and warnings of a load, or its error."""
    monkeypatch.setattr(json_files, "MAX_BYTES_IN_MEMORY", max_bytes)
    caplog.clear()
    with recorded_files() as files:
        try:
            table = load(source)
        except ValueError as error:
            return str(error)
    counts = [(file.name, file.first, file.counts.state_dict()) for file in files]
    return table.features, table[:], counts, caplog.messages


def both(load, source, monkeypatch, caplog):
    return [outcome(load, source, size, monkeypatch, caplog) for size in (0, 2**40)]


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
@pytest.mark.parametrize("load", [load_pairs, load_images])
def test_both_give_the_same(content, load, tmp_path, monkeypatch, caplog):
    source = write_json(tmp_path / "a.json", content)
    large, small = both(load, source, monkeypatch, caplog)
    assert large == small


def test_both_join_files_the_same_way(tmp_path, monkeypatch, caplog):
    sources = [write_json(tmp_path / f"{name}.json", FILES[name]) for name in ("COCO", "Karpathy", "equal ids")]
    sources.append(write_json_lines(tmp_path / "l.jsonl", [{"image": "a.jpg", "caption": "six", "image_id": 9}]))
    large, small = both(load_pairs, sources, monkeypatch, caplog)
    assert large == small
    assert large[1]["caption"][-1] == "six"


def random_coco(rng):
    """A file with images in random order, equal ids and, at times, a bad record."""
    ids = rng.choices([*range(20), *(f"x{i}" for i in range(5))] if rng.random() < 0.3 else range(40), k=30)
    paths = [rng.choice([f"{i}.jpg", "b.jpg", "../a.jpg", "\ud800.jpg"][: rng.choice([1, 2, 4])]) for i in ids]
    texts = [rng.choice(["a cat", "", "ж 🐕", "\udc00"][: rng.choice([1, 3, 4])]) for _ in range(90)]
    content = coco(*((rng.choice(ids), text) for text in texts), images=list(zip(ids, paths, strict=True)))
    if rng.random() < 0.5:
        record = rng.choice(content[rng.choice(["images", "annotations"])])
        record[rng.choice([*record])] = rng.choice([None, 5, "", "new", True, 2**70, ["a"], 999])
    content = dict(rng.sample(sorted(content.items()), len(content)))
    return content


def random_karpathy(rng):
    splits = rng.choices(["train", "restval", "val"], k=30)
    paths = [rng.choice([f"{i}.jpg", "../a.jpg", "\ud800.jpg"][: rng.choice([1, 3])]) for i in range(30)]
    captions = [
        rng.choices(["a cat", "", "ж 🐕", "\udc00"][: rng.choice([1, 3, 4])], k=rng.choice([1, 3])) for _ in splits
    ]
    content = karpathy(*((path, split, *own) for path, split, own in zip(paths, splits, captions, strict=True)))
    if rng.random() < 0.5:
        record = rng.choice(content["images"])
        record[rng.choice([*record])] = rng.choice([None, 5, "", "new", True, 2**70, ["a"], []])
    return content


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("draw", "loads"),
    [
        (random_coco, [load_pairs, load_images]),
        (random_karpathy, [partial(load_pairs, split=split) for split in ("train", "val", "test")]),
    ],
    ids=["COCO", "Karpathy"],
)
def test_both_give_the_same_for_random_files(draw, loads, seed, tmp_path, monkeypatch, caplog):
    rng = random.Random(seed)
    for number in range(8):
        source = write_json(tmp_path / f"{number}.json", draw(rng))
        large, small = both(rng.choice(loads), source, monkeypatch, caplog)
        assert large == small, source.read_text()


@pytest.mark.parametrize("content", [COCO, KARPATHY])
def test_shards_are_the_same(content, tmp_path, monkeypatch):
    source = write_json(tmp_path / "a.json", content)
    samples = []
    for size in (0, 2**40):
        monkeypatch.setattr(json_files, "MAX_BYTES_IN_MEMORY", size)
        samples.append([list(shard.read()) for shard in find_shards(source, shard_size=1)])
    assert samples[0] == samples[1]


def test_the_file_is_not_parsed_as_a_whole(tmp_path, monkeypatch, caplog):
    source = write_json(tmp_path / "a.json", COCO)
    monkeypatch.setattr("blip_hf.data.readers.lists.read_json", None)
    table = outcome(load_pairs, source, 0, monkeypatch, caplog)[1]
    assert table["caption"] == ["two", "four", "one", "three", "five"]


def test_temporary_files_are_removed(cache, tmp_path, monkeypatch, caplog):
    for name in ("COCO", "unknown image"):
        outcome(load_pairs, write_json(tmp_path / "a.json", FILES[name]), 0, monkeypatch, caplog)
    assert {path.suffix for path in (cache / "blip_hf").iterdir()} == {".arrow", ".json", ".lock"}


@pytest.mark.parametrize("file_format", ["coco", "karpathy"])
def test_memory_does_not_grow_with_the_file(file_format, tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "MAX_BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(json_files, "_CHUNK", 1 << 14)
    monkeypatch.setattr(places, "_ROWS_PER_WRITE", 1000)

    def peak(num_images):
        captions = [(i, f"a photo of dog number {i}") for i in range(num_images)]
        if file_format == "coco":
            content = coco(*reversed(captions), images=[(i, f"{i:08d}.jpg") for i in range(num_images)])
        else:
            content = karpathy(*((f"{i:08d}.jpg", "train", caption) for i, caption in captions))
        source = write_json(tmp_path / f"{num_images}.json", content)
        del content, captions
        tracemalloc.start()
        try:
            assert len(load_pairs(source)) == num_images
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small, large = peak(10_000), peak(40_000)
    assert large - small < 40 * 30_000  # bytes an image; as Python objects they take some 1,000
