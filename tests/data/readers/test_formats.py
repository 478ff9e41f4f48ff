# SPDX-License-Identifier: BSD-3-Clause
"""Every format gives the same images and captions through every entry point."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from blip_hf.capfilt.scores import SCHEMA
from blip_hf.capfilt.writers import write_pairs
from blip_hf.data.readers import find_shards, load_images, load_pairs
from blip_hf.data.scenes import Scenes
from blip_hf.image_utils import open_image
from tests.support.files import write_json, write_tar
from tests.support.images import encoded_image, write_images


CAPTIONS = {"red": "a red square", "lime": "something green", "blue": "the sky"}
PIXELS = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255)}


def tar_members(colors=CAPTIONS, suffix="png") -> list[tuple[str, bytes]]:
    return [
        member
        for color in colors
        for member in ((f"{color}.{suffix}", encoded_image(color)), (f"{color}.txt", CAPTIONS[color].encode()))
    ]


def write_each_tar(folder: Path) -> Path:
    for number, color in enumerate(CAPTIONS):
        write_tar(folder / f"{number:05d}.tar", tar_members([color]))
    return folder


def write_table(path: Path, images, caption="caption", image="image", **columns) -> Path:
    pq.write_table(pa.table({image: images, caption: list(CAPTIONS.values()), **columns}), path)
    return path


def json_list(folder: Path) -> Path:
    write_images(folder, *CAPTIONS)
    return write_json(folder / "a.json", [{"image": f"{c}.png", "caption": text} for c, text in CAPTIONS.items()])


def json_lines(folder: Path) -> Path:
    write_images(folder, *CAPTIONS)
    lines = [json.dumps({"image": f"{c}.png", "captions": [text]}) for c, text in CAPTIONS.items()]
    (folder / "a.jsonl").write_text("\n".join(lines))
    return folder / "a.jsonl"


def coco(folder: Path) -> Path:
    write_images(folder, *CAPTIONS)
    images = [{"id": number, "file_name": f"{color}.png"} for number, color in enumerate(CAPTIONS, 5)]
    annotations = [{"image_id": number, "caption": text} for number, text in enumerate(CAPTIONS.values(), 5)]
    return write_json(folder / "a.json", {"images": images, "annotations": annotations})


def karpathy(folder: Path) -> Path:
    write_images(folder, *CAPTIONS)
    images = [
        {"filename": f"{color}.png", "split": "train", "sentences": [{"raw": text}]}
        for color, text in CAPTIONS.items()
    ]
    return write_json(folder / "a.json", {"images": images})


def metadata_jsonl(folder: Path) -> Path:
    write_images(folder, *CAPTIONS)
    lines = [json.dumps({"file_name": f"{c}.png", "text": text}) for c, text in CAPTIONS.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def metadata_csv(folder: Path) -> Path:
    write_images(folder, *CAPTIONS)
    rows = "".join(f"{color}.png,{text}\n" for color, text in CAPTIONS.items())
    (folder / "metadata.csv").write_text(f"file_name,caption\n{rows}")
    return folder


def sidecars(folder: Path) -> Path:
    for number, (color, text) in enumerate(CAPTIONS.items()):
        (folder / f"{number}.png").write_bytes(encoded_image(color))
        (folder / f"{number}.txt").write_text(text)
    (folder / ".DS_Store").write_text("")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "._0.png").write_text("")
    return folder


def parquet_of_bytes(folder: Path) -> Path:
    return write_table(folder / "a.parquet", [encoded_image(color) for color in CAPTIONS])


def parquet_of_structs(folder: Path) -> Path:
    return write_table(folder / "a.parquet", [{"bytes": encoded_image(c), "path": "image.png"} for c in CAPTIONS])


def parquet_of_paths(folder: Path) -> Path:
    write_images(folder, *CAPTIONS)
    write_table(folder / "a.parquet", [f"{color}.png" for color in CAPTIONS])
    return folder


def tar(folder: Path) -> Path:
    return write_tar(folder / "a.tar.gz", tar_members(suffix="PNG"), "w:gz")


def tars(folder: Path) -> Path:
    return write_each_tar(folder)


def glob_of_tars(folder: Path) -> str:
    return f"{write_each_tar(folder)}/*.tar"


def brace_range_of_tars(folder: Path) -> str:
    return f"{write_each_tar(folder)}/{{00000..00002}}.tar"


def list_of_files(folder: Path) -> list[Path]:
    write_each_tar(folder)
    table = pa.table({"image": [encoded_image("blue")], "caption": [CAPTIONS["blue"]]})
    pq.write_table(table, folder / "c.parquet")
    write_images(folder, "lime")
    lime = write_json(folder / "b.json", [{"image": "lime.png", "caption": CAPTIONS["lime"]}])
    return [folder / "00000.tar", lime, folder / "c.parquet"]


def img2dataset_tars(folder: Path) -> Path:
    write_each_tar(folder)
    for number, (color, text) in enumerate(CAPTIONS.items()):
        table = pa.table({"url": ["http://a", "http://b"], "caption": [text, "lost"], "key": [color, "9"]})
        pq.write_table(table, folder / f"{number:05d}.parquet")
        write_json(folder / f"{number:05d}_stats.json", {"successes": 1})
    return folder


def img2dataset_files(folder: Path) -> Path:
    for number, (color, text) in enumerate(CAPTIONS.items()):
        shard = folder / f"{number:05d}"
        shard.mkdir()
        key = f"{number:05d}0000"
        (shard / f"{key}.jpg").write_bytes(encoded_image(color))
        (shard / f"{key}.txt").write_text(text)
        write_json(shard / f"{key}.json", {"caption": text, "url": "http://a", "key": key, "status": "success"})
        pq.write_table(pa.table({"url": ["http://a"]}), folder / f"{number:05d}.parquet")
        write_json(folder / f"{number:05d}_stats.json", {"successes": 1})
    return folder


def img2dataset_parquet(folder: Path) -> Path:
    images = [encoded_image(color) for color in CAPTIONS] + [None]
    table = {
        "key": ["0", "1", "2", "3"],
        "jpg": pa.array(images, pa.binary()),
        "txt": [*CAPTIONS.values(), "lost"],
        "caption": [*CAPTIONS.values(), "lost"],
        "url": ["http://a"] * 4,
        "status": ["success"] * 3 + ["failed_to_download"],
        "error_message": [None] * 3 + ["HTTP Error 404"],
    }
    pq.write_table(pa.table(table), folder / "00000.parquet")
    write_json(folder / "00000_stats.json", {"successes": 3})
    return folder


def capfilt_run(folder: Path, format: str) -> Path:
    source = tar(folder)
    (shard,) = find_shards(source)
    rows = [
        {
            "sample_id": sample.sample_id,
            "image_id": sample.image_id,
            "image": "",
            "text_index": 0,
            "text": sample.texts[0],
            "source": "web",
        }
        for sample in shard.samples()
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    for part in ("pairs", "scores", "skipped"):
        (folder / "run" / part).mkdir(parents=True)
    write_pairs(shard.samples(), table, folder / "run" / "pairs" / shard.name, format)
    pq.write_table(table, folder / "run" / "scores" / f"{shard.name}.parquet")
    for name in ("run.json", "summary.json"):
        write_json(folder / "run" / name, {})
    return folder / "run"


def capfilt_parquet(folder: Path) -> Path:
    return capfilt_run(folder, "parquet")


def capfilt_webdataset(folder: Path) -> Path:
    return capfilt_run(folder, "webdataset")


def capfilt_json(folder: Path) -> Path:
    return capfilt_run(folder, "json")


def dataset(folder: Path) -> Dataset:
    images = [{"bytes": encoded_image(color), "path": None} for color in CAPTIONS]
    table = Dataset.from_dict({"image": images, "text": list(CAPTIONS.values())})
    return table.cast_column("image", datasets.Image())


def saved_dataset(folder: Path) -> Path:
    DatasetDict({"train": dataset(folder), "test": dataset(folder).select([0])}).save_to_disk(folder / "saved")
    return folder / "saved"


FORMATS: list[Callable[[Path], object]] = [
    json_list,
    json_lines,
    coco,
    karpathy,
    metadata_jsonl,
    metadata_csv,
    sidecars,
    parquet_of_bytes,
    parquet_of_structs,
    parquet_of_paths,
    tar,
    tars,
    glob_of_tars,
    brace_range_of_tars,
    list_of_files,
    img2dataset_tars,
    img2dataset_files,
    img2dataset_parquet,
    capfilt_parquet,
    capfilt_webdataset,
    capfilt_json,
    dataset,
    saved_dataset,
]


def colors(images) -> list[tuple[int, int, int]]:
    return [open_image(image).getpixel((0, 0)) for image in images]


@pytest.mark.parametrize("write", FORMATS)
def test_all_entry_points_give_the_same_records(write, tmp_path, monkeypatch):
    source = write(tmp_path)

    def refuse(*_, **__):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    pairs, images = load_pairs(source), load_images(source)
    samples = [item for shard in find_shards(source) for item in shard.samples() if not hasattr(item, "reason")]

    assert pairs.column_names == ["image", "caption", "image_id", "source_id"]
    assert pairs["caption"][:] == [sample.texts[0] for sample in samples] == list(CAPTIONS.values())
    assert colors(pairs["image"]) == [sample.open_image().getpixel((0, 0)) for sample in samples] == [*PIXELS.values()]
    assert len(set(pairs["image_id"])) == len(set(pairs["source_id"])) == 3
    assert images.column_names == ["image", "image_id", "source_id"]
    assert colors(images["image"])[: len(PIXELS)] == [*PIXELS.values()]
    # The second time, tars and Parquet files are in the cache.
    assert load_pairs(source)[:] == pairs[:]


def test_a_name_on_the_hub_is_loaded_by_datasets(tmp_path, monkeypatch):
    asked = []

    def load(name, split):
        asked.append((name, split))
        return dataset(tmp_path)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_pairs("hf://datasets/owner/photos-1.5", split="test")["caption"][:] == list(CAPTIONS.values())
    (shard,) = find_shards("hf://datasets/owner/photos-1.5", split="test")
    assert (shard.name, next(shard.samples()).sample_id) == ("owner_photos-1.5-00000", "owner_photos-1.5/00000000")
    assert asked == [("owner/photos-1.5", "test")] * 2


def test_scenes_have_random_access():
    pairs = load_pairs("scenes:4:0.5")
    scenes = Scenes(4, noise_rate=0.5)
    assert pairs["caption"][:] == scenes.captions()
    assert pairs["image_id"][:] == [0, 1, 2, 3]
    assert open_image(pairs[2]["image"]).tobytes() == scenes[2]["image"].tobytes()
    assert load_pairs(scenes)[:] == pairs[:]


def test_a_changed_tar_is_read_again(tmp_path):
    source = write_tar(tmp_path / "a.tar", tar_members(["red"]))
    assert load_pairs(source)["caption"][:] == [CAPTIONS["red"]]
    write_tar(source, tar_members(["lime", "blue"]))
    assert load_pairs(source)["caption"][:] == [CAPTIONS["lime"], CAPTIONS["blue"]]


def test_several_captions_of_an_image_are_one_image_in_tables(tmp_path):
    """Lists of a CapFilt run of two shards, with web and synthetic texts, and another source."""
    for number in range(2):
        images = [encoded_image("red" if number == 0 else "lime")] * 2
        columns = {"image": images, "caption": ["web", "synthetic"], "image_id": [str(number)] * 2}
        pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet")
    assert load_pairs(tmp_path)["image_id"][:] == [0, 0, 1, 1]
    assert load_pairs(tmp_path)["source_id"][:] == ["0", "0", "1", "1"]
    assert len(load_images(tmp_path)) == 2
    write_images(tmp_path, "blue")
    own = write_json(tmp_path / "own.json", [{"image": "blue.png", "caption": "human", "image_id": "0"}])
    joined = load_pairs([tmp_path / "0.parquet", tmp_path / "1.parquet", own])
    assert joined["image_id"][:] == [0, 0, 1, 1, 2]


def test_skipped_records_of_tars_are_counted_in_a_warning(tmp_path, caplog):
    members = [*tar_members(["red"]), ("x.png", encoded_image()), *tar_members(["blue"])]
    assert load_pairs(write_tar(tmp_path / "a.tar", members))["caption"][:] == [CAPTIONS["red"], CAPTIONS["blue"]]
    assert "a.tar: skipped 1 bad_record, the first a/x (a/x: field 'caption' is missing" in caplog.text


def test_failed_downloads_of_img2dataset_are_skipped_with_their_error(tmp_path):
    img2dataset_parquet(tmp_path)
    (shard,) = find_shards(tmp_path)
    *_, last = shard.samples()
    assert (last.sample_id, last.reason) == ("00000/3", "unreadable_image")
    assert "HTTP Error 404" in last.detail


# Images without captions


def test_captions_are_optional_for_load_images(tmp_path):
    (tmp_path / "sub").mkdir()
    write_images(tmp_path / "sub", "lime")
    write_images(tmp_path, "red")
    images = load_images(tmp_path)
    assert images["source_id"][:] == ["red.png", "sub/lime.png"]
    assert load_images(tmp_path / "red.png")["image"][:] == [str(tmp_path / "red.png")]
    bare = write_tar(tmp_path / "a.tar", [("0.png", encoded_image("blue"))])
    assert colors(load_images(bare)["image"]) == [PIXELS["blue"]]
    write_table(tmp_path / "a.parquet", [encoded_image(color) for color in CAPTIONS], caption="notes")
    assert colors(load_images(tmp_path / "a.parquet")["image"]) == [*PIXELS.values()]
    info = write_json(tmp_path / "info.json", {"images": [{"id": 3, "file_name": "red.png"}]})
    assert load_images(info)["source_id"][:] == [3]


@pytest.mark.parametrize("read", [load_pairs, find_shards])
def test_images_without_captions_raise_in_load_pairs(read, tmp_path):
    write_images(tmp_path, "red", "blue")
    with pytest.raises(ValueError, match=r"has images without captions \(2, such as blue.png\). Add a metadata.jsonl"):
        read(tmp_path)


def test_an_image_without_its_text_is_skipped(tmp_path, caplog):
    sidecars(tmp_path)
    (tmp_path / "1.txt").unlink()
    assert load_pairs(tmp_path)["caption"][:] == ["a red square", "the sky"]
    assert "skipped 1 bad_record" in caplog.text


def test_a_moved_run_folder_still_finds_the_images_of_its_list(tmp_path):
    shutil.move(capfilt_json(tmp_path), tmp_path / "moved")
    assert colors(load_pairs(tmp_path / "moved")["image"]) == [*PIXELS.values()]
