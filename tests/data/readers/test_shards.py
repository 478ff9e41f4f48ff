# SPDX-License-Identifier: BSD-3-Clause
"""Sources as shards of samples."""

import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip_hf.data.readers import Sample, find_shards
from blip_hf.data.scenes import Scenes
from tests.support.files import write_json, write_tar
from tests.support.images import encoded_image, write_images
from tests.support.sources import color_of, read, summary


# Kinds of source


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz")])
def test_tars_are_read_by_key(name, mode, tmp_path):
    members = [
        ("./000.jpg", encoded_image("red", "JPEG")),
        ("./000.txt", b"A red one.\n"),
        ("sub/001.png", encoded_image("lime")),
        ("sub/001.seg.png", encoded_image("black")),
        ("sub/001.json", b'{"caption": ["green", "lime"], "image_id": 7}'),
        ("sub/001.cls", b"3"),
    ]
    samples = read(write_tar(tmp_path / name, members, mode))
    assert summary(samples) == [("a/000", ("A red one.",)), ("a/sub/001", ("green", "lime"))]
    assert [sample.image_id for sample in samples] == ["a/000", "7"]
    assert samples[0].image == members[0][1]
    assert color_of(samples[1]) == (0, 255, 0)


@pytest.mark.parametrize("form", ["bytes", "struct", "path"])
def test_parquet_images_are_bytes_paths_or_both(form, tmp_path):
    write_images(tmp_path, "red", "blue")
    content = {
        "bytes": lambda name: encoded_image(name),
        "struct": lambda name: {"bytes": encoded_image(name), "path": "other.png"},
        "path": lambda name: f"{name}.png",
    }[form]
    table = pa.table({"image": [content("red"), content("blue")], "captions": [["a", "b"], ["c"]], "id": [30, 10]})
    pq.write_table(table, tmp_path / "x.parquet")
    samples = read(tmp_path / "x.parquet")
    assert summary(samples) == [("x/30", ("a", "b")), ("x/10", ("c",))]
    assert [color_of(sample) for sample in samples] == [(255, 0, 0), (0, 0, 255)]


def test_json_lists_are_sharded_between_images(tmp_path):
    write_images(tmp_path, "red", "lime", "blue")
    colors = ["red", "red", "red", "lime", "blue"]
    source = write_json(
        tmp_path / "web.json", [{"image": f"{c}.png", "caption": f"{c} {i}"} for i, c in enumerate(colors)]
    )
    shards = find_shards(source, shard_size=2)
    assert [shard.name for shard in shards] == ["web-00000", "web-00001"]
    # The third text of the red image goes with the first two.
    assert [summary(shard.samples()) for shard in shards] == [
        [("web/00000000", ("red 0", "red 1", "red 2"))],
        [("web/00000003", ("lime 3",)), ("web/00000004", ("blue 4",))],
    ]


def test_ids_do_not_depend_on_the_size_of_shards(tmp_path):
    write_images(tmp_path, "red", "lime", "blue")
    source = write_json(tmp_path / "l.json", [{"image": f"{c}.png", "caption": c} for c in ("red", "lime", "blue")])
    assert read(source, shard_size=1) == read(source, shard_size=2) == read(source)


@pytest.mark.parametrize("image_id", [7, ""])
def test_different_images_with_one_id_keep_their_texts(image_id, tmp_path):
    write_images(tmp_path, "red", "lime")
    records = [{"image": f"{c}.png", "caption": c, "image_id": image_id} for c in ("red", "lime", "lime")]
    pq.write_table(
        pa.table(
            {
                "image": [encoded_image("red"), encoded_image("lime")],
                **{name: [record[name] for record in records[:2]] for name in ("caption", "image_id")},
            }
        ),
        tmp_path / "x.parquet",
    )
    in_list = read(write_json(tmp_path / "l.json", records), shard_size=1)
    assert [(color_of(sample), sample.texts) for sample in in_list] == [
        ((255, 0, 0), ("red",)),
        ((0, 255, 0), ("lime", "lime")),
    ]
    in_table = read(tmp_path / "x.parquet")
    assert [(color_of(sample), sample.texts) for sample in in_table] == [
        ((255, 0, 0), ("red",)),
        ((0, 255, 0), ("lime",)),
    ]
    # An empty id is not an id.
    ids = [sample.image_id for sample in (*in_list, *in_table)]
    assert ids == (["7"] * 4 if image_id else ["red.png", "lime.png", "x/00000000", "x/00000001"])


def test_broken_json_line_does_not_end_the_stream(tmp_path):
    write_images(tmp_path, "red")
    good = json.dumps({"image": "red.png", "caption": "a line\u2028separator"}, ensure_ascii=False)
    (tmp_path / "l.jsonl").write_text(f'{{"image": \n{good}\n', encoding="utf-8")
    assert summary(read(tmp_path / "l.jsonl")) == [
        ("l/00000000", "bad_record"),
        ("l/00000001", ("a line\u2028separator",)),
    ]


def test_drawn_scenes_are_a_source():
    items = read("scenes:5:0.4", shard_size=2)
    scenes = Scenes(5, noise_rate=0.4)
    assert [item.texts[0] for item in items] == scenes.captions()
    assert items[3].open_image().tobytes() == scenes[3]["image"].tobytes()
    assert [item.sample_id for item in read(Scenes(2, start=7))] == ["scenes/00000007", "scenes/00000008"]


def test_empty_shard_raises():
    with pytest.raises(ValueError, match="shard_size=0 is too small"):
        find_shards("scenes:4", shard_size=0)


# Memory


def write_many(folder: Path, num_samples: int, suffix: str) -> Path:
    """Images of 50 kB; in Parquet, all in one row group of many pages."""
    path, image = folder / f"{num_samples}{suffix}", encoded_image() + os.urandom(50_000)
    if suffix == ".tar":
        members = [
            (f"{i}.{end}", content) for i in range(num_samples) for end, content in (("png", image), ("txt", b"a"))
        ]
        return write_tar(path, members)
    table = pa.table({"image": [image] * num_samples, "caption": ["a"] * num_samples})
    pq.write_table(table, path, use_dictionary=False, compression="none", write_batch_size=10)
    return path


def peak_of_reading(path: Path, num_samples: int) -> int:
    """Peak memory of Python and Arrow while a shard is read."""
    (shard,) = find_shards(path)
    before = arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    for item in shard.samples():
        num_samples -= isinstance(item, Sample)
        arrow = max(arrow, pa.total_allocated_bytes())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_samples == 0
    return peak + arrow - before


@pytest.mark.parametrize("suffix", [".tar", ".parquet"])
def test_memory_does_not_grow_with_a_shard(suffix, tmp_path):
    small, large = (peak_of_reading(write_many(tmp_path, number, suffix), number) for number in (100, 500))
    # 400 more images may add the memory of ids, but not that of 20 images.
    assert large < small + 1_000_000
