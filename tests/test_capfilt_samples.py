# SPDX-License-Identifier: BSD-3-Clause
"""Sources as shards of samples, and what is left out of them."""

import gzip
import io
import json
import os
import struct
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from blip_hf.capfilt import streams
from blip_hf.capfilt.samples import Fault, Sample, find_shards
from blip_hf.data.images import UnreadableImageError
from blip_hf.data.scenes import Scenes


def encoded(color="red", format="PNG", size=(4, 3)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, color).save(content, format)
    return content.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 10^10 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = (b"IHDR" + header, b"IDAT")
    packed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def write_tar(path: Path, members: list[tuple[str, bytes]], mode="w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_pictures(folder: Path, *colors: str) -> None:
    for color in colors:
        (folder / f"{color}.png").write_bytes(encoded(color))


def write_json(path: Path, content) -> Path:
    path.write_text(json.dumps(content))
    return path


def read(source, **options) -> list[Sample | Fault]:
    return [item for shard in find_shards(source, **options) for item in shard.samples()]


def summary(items) -> list[tuple]:
    """Id with texts, or with the reason of the fault."""
    return [(item.sample_id, item.texts if isinstance(item, Sample) else item.reason) for item in items]


def color_of(sample: Sample):
    return sample.picture().getpixel((0, 0))


# Kinds of source


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz")])
def test_tars_are_read_by_key(name, mode, tmp_path):
    members = [
        ("./000.jpg", encoded("red", "JPEG")),
        ("./000.txt", b"A red one.\n"),
        ("sub/001.png", encoded("lime")),
        ("sub/001.seg.png", encoded("black")),
        ("sub/001.json", b'{"caption": ["green", "lime"], "image_id": 7}'),
        ("sub/001.cls", b"3"),
    ]
    samples = read(write_tar(tmp_path / name, members, mode))
    assert summary(samples) == [("a/000", ("A red one.",)), ("a/sub/001", ("green", "lime"))]
    assert [sample.image_id for sample in samples] == ["a/000", "7"]
    assert samples[0].image == members[0][1]
    assert color_of(samples[1]) == (0, 255, 0)


@pytest.mark.parametrize("form", ["bytes", "struct", "path"])
def test_parquet_pictures_are_bytes_paths_or_both(form, tmp_path):
    write_pictures(tmp_path, "red", "blue")
    content = {
        "bytes": lambda name: encoded(name),
        "struct": lambda name: {"bytes": encoded(name), "path": "other.png"},
        "path": lambda name: f"{name}.png",
    }[form]
    table = pa.table({"image": [content("red"), content("blue")], "captions": [["a", "b"], ["c"]], "id": [30, 10]})
    pq.write_table(table, tmp_path / "x.parquet")
    samples = read(tmp_path / "x.parquet")
    assert summary(samples) == [("x/30", ("a", "b")), ("x/10", ("c",))]
    assert [color_of(sample) for sample in samples] == [(255, 0, 0), (0, 0, 255)]


def test_json_lists_are_cut_between_pictures(tmp_path):
    write_pictures(tmp_path, "red", "lime", "blue")
    colors = ["red", "red", "red", "lime", "blue"]
    source = write_json(
        tmp_path / "web.json", [{"image": f"{c}.png", "caption": f"{c} {i}"} for i, c in enumerate(colors)]
    )
    shards = find_shards(source, shard_size=2)
    assert [shard.name for shard in shards] == ["web-00000", "web-00001"]
    # The third text of the red picture goes with the first two.
    assert [summary(shard.samples()) for shard in shards] == [
        [("web/00000000", ("red 0", "red 1", "red 2"))],
        [("web/00000003", ("lime 3",)), ("web/00000004", ("blue 4",))],
    ]


def test_ids_do_not_depend_on_the_size_of_shards(tmp_path):
    write_pictures(tmp_path, "red", "lime", "blue")
    source = write_json(tmp_path / "l.json", [{"image": f"{c}.png", "caption": c} for c in ("red", "lime", "blue")])
    assert read(source, shard_size=1) == read(source, shard_size=2) == read(source)


@pytest.mark.parametrize("image_id", [7, ""])
def test_different_pictures_of_one_id_stay_apart_with_their_texts(image_id, tmp_path):
    write_pictures(tmp_path, "red", "lime")
    records = [{"image": f"{c}.png", "caption": c, "image_id": image_id} for c in ("red", "lime", "lime")]
    pq.write_table(
        pa.table(
            {
                "image": [encoded("red"), encoded("lime")],
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
    # An empty id is none.
    ids = [sample.image_id for sample in (*in_list, *in_table)]
    assert ids == (["7"] * 4 if image_id else ["red.png", "lime.png", "x/00000000", "x/00000001"])


def test_json_lines_go_on_behind_a_broken_one(tmp_path):
    write_pictures(tmp_path, "red")
    good = json.dumps({"image": "red.png", "caption": "a line\u2028separator"}, ensure_ascii=False)
    (tmp_path / "l.jsonl").write_text(f'{{"image": \n{good}\n', encoding="utf-8")
    assert summary(read(tmp_path / "l.jsonl")) == [
        ("l/00000000", "bad_record"),
        ("l/00000001", ("a line\u2028separator",)),
    ]


def test_annotations_of_coco_are_a_list(tmp_path):
    write_pictures(tmp_path, "red")
    content = {
        "images": [{"id": 9, "file_name": "red.png"}],
        "annotations": [{"image_id": 9, "caption": text} for text in ("a", "b")],
    }
    (sample,) = read(write_json(tmp_path / "c.json", content))
    assert (sample.texts, sample.image_id) == (("a", "b"), "9")


def test_folders_are_read_by_what_they_hold(tmp_path):
    write_pictures(tmp_path, "red")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "red.png", "text": "red"}\n')
    assert summary(read(tmp_path)) == [("metadata/00000000", ("red",))]
    tars = tmp_path / "tars"
    tars.mkdir()
    for name in ("b", "a"):
        write_tar(tars / f"{name}.tar", [("0.png", encoded()), ("0.txt", name.encode())])
    assert summary(read(str(tars))) == [("a/0", ("a",)), ("b/0", ("b",))]


def test_files_of_the_same_name_are_told_apart_by_folder(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "0.tar", [])
    shards = find_shards([tmp_path / "x" / "0.tar", tmp_path / "y" / "0.tar"])
    assert [shard.name for shard in shards] == ["x_0", "y_0"]
    with pytest.raises(ValueError, match="Several sources are called '0'"):
        find_shards([tmp_path / "x" / "0.tar"] * 2)


def test_drawn_scenes_are_a_source():
    items = read("scenes:5:0.4", shard_size=2)
    scenes = Scenes(5, noise_rate=0.4)
    assert [item.texts[0] for item in items] == scenes.captions()
    assert items[3].picture().tobytes() == scenes[3]["image"].tobytes()
    assert [item.sample_id for item in read(Scenes(2, start=7))] == ["scenes/00000007", "scenes/00000008"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("lost.tar", "lost.tar does not exist. Pass WebDataset tars"),
        ([], "list of sources is empty"),
        ("scenes:0", "expected scenes:NUMBER"),
        ("scenes:5:1.5", "expected scenes:NUMBER"),
    ],
)
def test_sources_that_do_not_fit_are_named(source, message):
    with pytest.raises(ValueError, match=message):
        find_shards(source)


def test_folders_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds no source"):
        find_shards(tmp_path)
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(ValueError, match=r"notes.md is no file of a known kind"):
        find_shards(tmp_path / "notes.md")
    write_tar(tmp_path / "a.tar", [])
    write_json(tmp_path / "a.json", [])
    with pytest.raises(ValueError, match=r"holds \['list', 'tar'\]. Pass one of them"):
        find_shards(tmp_path)
    with pytest.raises(ValueError, match="shard_size=0"):
        find_shards(tmp_path / "a.tar", shard_size=0)


def test_parquet_without_its_columns_is_refused(tmp_path):
    pq.write_table(pa.table({"url": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="has the columns url, expected 'image' and one of 'caption'"):
        read(tmp_path / "x.parquet")


# Faults


def test_faulty_records_are_named_and_the_stream_goes_on(tmp_path):
    write_pictures(tmp_path, "red", "lime")
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "bomb.png").write_bytes(bomb())
    records = [
        {"image": "lost.png", "caption": "a"},
        {"image": "text.png", "caption": "a"},
        {"image": "bomb.png", "caption": "a"},
        {"image": "red.png", "caption": " ... "},
        {"image": "red.png", "caption": "x" * (streams.MAX_TEXT_LENGTH + 1)},
        {"image": "red.png", "caption": "half \ud800 of a pair"},
        {"image": "red.png"},
        {"image": 5, "caption": "a"},
        "red.png",
        {"image": "lime.png", "caption": ["", "fine "]},
    ]
    reasons = dict(enumerate(["unreadable_image", "unreadable_image", "huge_image"]))
    reasons |= dict(enumerate(["empty_text", "huge_text", *["bad_record"] * 4], 3))
    items = read(write_json(tmp_path / "l.json", records))
    faults = {int(item.sample_id[2:]): item.reason for item in items if isinstance(item, Fault)}
    assert faults == reasons | {9: "empty_text"}
    assert summary(item for item in items if isinstance(item, Sample)) == [("l/00000009", ("fine",))]


def test_pictures_over_the_limits_are_faults(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MAX_IMAGE_PIXELS", 12)
    members = [("0.png", encoded(size=(4, 3))), ("0.txt", b"a"), ("1.png", encoded(size=(13, 1))), ("1.txt", b"b")]
    source = write_tar(tmp_path / "a.tar", members)
    assert summary(read(source)) == [("a/0", ("a",)), ("a/1", "huge_image")]
    monkeypatch.setattr(streams, "MAX_IMAGE_BYTES", 10)
    assert [reason for _, reason in summary(read(source))] == ["huge_image"] * 2


def test_pictures_broken_behind_their_header_raise_when_they_are_opened(tmp_path):
    torn = encoded("red", "JPEG", (640, 640))[:-2000]
    (sample,) = read(write_tar(tmp_path / "a.tar", [("0.jpg", torn), ("0.txt", b"a")]))
    with pytest.raises(UnreadableImageError, match="of a/0"):
        sample.picture()


def test_faulty_members_of_a_tar_are_named(tmp_path):
    members = [
        ("0.png", encoded()),
        ("1.txt", b"no picture"),
        ("2.png", encoded()),
        ("2.txt", b"\xff no utf-8"),
        ("3.png", encoded()),
        ("3.json", b"[]"),
        ("4.png", encoded()),
        ("4.txt", b"x" * (2**20 + 1)),
        ("5.png", encoded()),
        ("5.txt", b"fine"),
        ("0.png", encoded()),
        ("0.txt", b"fine"),
        ("5.png", encoded()),
        ("5.txt", b"again"),
    ]
    assert summary(read(write_tar(tmp_path / "a.tar", members))) == [
        *((f"a/{key}", "bad_record") for key in range(4)),
        ("a/4", "huge_text"),
        ("a/5", ("fine",)),
        ("a/0", ("fine",)),
        ("a/5", "bad_record"),
    ]


def test_a_tar_cut_anywhere_gives_its_head_and_a_fault(tmp_path):
    members = [(f"{i}.{suffix}", content) for i in range(3) for suffix, content in (("png", encoded()), ("txt", b"a"))]
    content = write_tar(tmp_path / "a.tar", members).read_bytes()
    # A member has a block of 512 bytes for its header and one for its content, of which a text fills the first byte.
    assert summary(read(tmp_path / "a.tar")) == [(f"a/{i}", ("a",)) for i in range(3)]
    for cut in [0, 100, 512, 1000, 1024, 1536, 2047, 2048, 2500, 3072, 3100, 5632, 5633, 6144]:
        (tmp_path / "a.tar").write_bytes(content[:cut])
        *samples, fault = read(tmp_path / "a.tar")
        assert fault.reason == "truncated_tar", cut
        assert summary(samples) == [(f"a/{i}", ("a",)) for i in range((cut + 511) // 2048)], cut


def test_a_torn_header_or_compressed_stream_is_no_end(tmp_path):
    members = [(f"{i}.{suffix}", content) for i in range(3) for suffix, content in (("png", encoded()), ("txt", b"a"))]
    content = bytearray(write_tar(tmp_path / "a.tar", members).read_bytes())
    compressed = gzip.compress(bytes(content))
    content[2048:2060] = b"garbage here"
    (tmp_path / "a.tar").write_bytes(content)
    assert summary(read(tmp_path / "a.tar")) == [("a/0", ("a",)), ("a/0", "truncated_tar")]
    (tmp_path / "a.tar").unlink()
    (tmp_path / "a.tar.gz").write_bytes(compressed[:-30])
    assert read(tmp_path / "a.tar.gz")[-1].reason == "truncated_tar"


def test_broken_parquet_loses_no_more_than_its_group(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    assert summary(read(path)) == [("x", "bad_record")]
    table = pa.table({"image": [encoded()] * 4, "caption": [f"text number {i}" for i in range(4)]})
    pq.write_table(table, path, row_group_size=2, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    path.write_bytes(content[:footer] + b"\xff" * 32 + content[footer + 32 :])
    assert summary(read(path)) == [("x", "bad_record")]
    path.write_bytes(content)
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    start = column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    assert summary(read(path)) == [
        ("x/00000000", "bad_record"),
        ("x/00000002", ("text number 2",)),
        ("x/00000003", ("text number 3",)),
    ]


def test_parquet_rows_without_a_picture_or_text_are_faults(tmp_path):
    table = pa.table({"image": [None, encoded(), encoded()], "caption": ["a", None, "c"], "id": ["p", "q", "r"]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert summary(read(tmp_path / "x.parquet")) == [("x/p", "bad_record"), ("x/q", "bad_record"), ("x/r", ("c",))]


# Memory


def write_many(folder: Path, num_samples: int, suffix: str) -> Path:
    """Pictures of 50 kB, and in Parquet all of them in one group of many pages."""
    path, picture = folder / f"{num_samples}{suffix}", encoded() + os.urandom(50_000)
    if suffix == ".tar":
        members = [
            (f"{i}.{end}", content) for i in range(num_samples) for end, content in (("png", picture), ("txt", b"a"))
        ]
        return write_tar(path, members)
    table = pa.table({"image": [picture] * num_samples, "caption": ["a"] * num_samples})
    pq.write_table(table, path, use_dictionary=False, compression="none", write_batch_size=10)
    return path


def peak_of_reading(path: Path, num_samples: int) -> int:
    """Bytes that Python and Arrow hold at most while a shard is read."""
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
    # Ids and the like may be held; of 400 pictures more, 20 may not.
    assert large < small + 1_000_000
