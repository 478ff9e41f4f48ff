# SPDX-License-Identifier: BSD-3-Clause
"""Broken records are skipped and counted, and never stop a stream."""

import errno
import gzip
import json
import os
import re
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from blip_hf import image_utils
from blip_hf.data.readers import find_shards, samples
from blip_hf.data.readers.samples import Sample, Skipped
from blip_hf.image_utils import UnreadableImageError
from tests.support.files import write_json, write_tar
from tests.support.images import encoded_image, write_images
from tests.support.sources import bomb, read, summary


def test_broken_records_are_skipped_and_the_stream_goes_on(tmp_path):
    write_images(tmp_path, "red", "lime")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "bomb.png").write_bytes(bomb())
    records = [
        {"image": "lost.png", "caption": "a"},
        {"image": "text.png", "caption": "a"},
        {"image": "bomb.png", "caption": "a"},
        {"image": "red.png", "caption": " ... "},
        {"image": "red.png", "caption": "x" * (samples.MAX_TEXT_LENGTH + 1)},
        {"image": "red.png", "caption": "half \ud800 of a pair"},
        {"image": "red.png"},
        {"image": 5, "caption": "a"},
        "red.png",
        {"image": "lime.png", "caption": ["", "fine "]},
    ]
    reasons = dict(enumerate(["unreadable_image", "unreadable_image", "huge_image"]))
    reasons |= dict(enumerate(["empty_text", "huge_text", *["bad_record"] * 4], 3))
    items = read(write_json(tmp_path / "l.json", records))
    skipped = {int(item.sample_id[2:]): item.reason for item in items if isinstance(item, Skipped)}
    assert skipped == reasons | {9: "empty_text"}
    assert summary(item for item in items if isinstance(item, Sample)) == [("l/00000009", ("fine",))]


def test_images_over_the_limits_are_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(image_utils, "MAX_IMAGE_PIXELS", 12)
    members = [
        ("0.png", encoded_image(size=(4, 3))),
        ("0.txt", b"a"),
        ("1.png", encoded_image(size=(13, 1))),
        ("1.txt", b"b"),
    ]
    source = write_tar(tmp_path / "a.tar", members)
    assert summary(read(source)) == [("a/0", ("a",)), ("a/1", "huge_image")]
    monkeypatch.setattr(image_utils, "MAX_IMAGE_BYTES", 10)
    assert [reason for _, reason in summary(read(source))] == ["huge_image"] * 2


def test_images_with_a_broken_body_raise_on_opening(tmp_path):
    torn = encoded_image("red", "JPEG", (640, 640))[:-2000]
    (sample,) = read(write_tar(tmp_path / "a.tar", [("0.jpg", torn), ("0.txt", b"a")]))
    with pytest.raises(UnreadableImageError, match="of a/0"):
        sample.open_image()


def test_broken_members_of_a_tar_are_skipped(tmp_path):
    members = [
        ("0.png", encoded_image()),
        ("1.txt", b"no image"),
        ("2.png", encoded_image()),
        ("2.txt", b"\xff no utf-8"),
        ("3.png", encoded_image()),
        ("3.json", b"[]"),
        ("4.png", encoded_image()),
        ("4.txt", b"x" * (2**20 + 1)),
        ("5.png", encoded_image()),
        ("5.txt", b"fine"),
        ("0.png", encoded_image()),
        ("0.txt", b"fine"),
        ("5.png", encoded_image()),
        ("5.txt", b"again"),
    ]
    assert summary(read(write_tar(tmp_path / "a.tar", members))) == [
        *((f"a/{key}", "bad_record") for key in range(4)),
        ("a/4", "huge_text"),
        ("a/5", ("fine",)),
        ("a/0", ("fine",)),
        ("a/5", "bad_record"),
    ]


def test_members_whose_names_have_dots_are_counted(tmp_path):
    members = [
        ("b/img.v1.png", encoded_image()),
        ("b/img.v1.txt", b"one"),
        ("b/img.v2.png", encoded_image()),
        ("b/img.v2.txt", b"two"),
        ("c.edge.png", encoded_image()),
        ("c.png", encoded_image()),
        ("c.txt", b"fine"),
    ]
    assert summary(read(write_tar(tmp_path / "a.tar", members))) == [
        ("a/b/img.v1", "bad_record"),
        ("a/b/img.v2", "bad_record"),
        ("a/c", ("fine",)),
    ]


def write_three_pairs(path):
    return write_tar(path, [pair for i in range(3) for pair in ((f"{i}.png", encoded_image()), (f"{i}.txt", b"a"))])


def test_truncated_tar_gives_its_complete_members_and_is_reported(tmp_path):
    content = write_three_pairs(tmp_path / "a.tar").read_bytes()
    # A member has a block of 512 bytes for its header and one for its content. A text has one byte.
    assert summary(read(tmp_path / "a.tar")) == [(f"a/{i}", ("a",)) for i in range(3)]
    for cut in [0, 100, 512, 1000, 1024, 1536, 2047, 2048, 2500, 3072, 3100, 5632, 5633, 6144]:
        (tmp_path / "a.tar").write_bytes(content[:cut])
        *samples, last = read(tmp_path / "a.tar")
        assert last.reason == "truncated_tar", cut
        assert summary(samples) == [(f"a/{i}", ("a",)) for i in range((cut + 511) // 2048)], cut


def test_broken_header_or_compression_is_not_an_end_of_file(tmp_path):
    content = bytearray(write_three_pairs(tmp_path / "a.tar").read_bytes())
    compressed = gzip.compress(bytes(content))
    content[2048:2060] = b"garbage here"
    (tmp_path / "a.tar").write_bytes(content)
    assert summary(read(tmp_path / "a.tar")) == [("a/0", ("a",)), ("a/0", "truncated_tar")]
    (tmp_path / "a.tar").unlink()
    (tmp_path / "a.tar.gz").write_bytes(compressed[:-30])
    assert read(tmp_path / "a.tar.gz")[-1].reason == "truncated_tar"


def test_broken_parquet_loses_only_its_row_group(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    assert summary(read(path)) == [("x", "bad_record")]
    table = pa.table({"image": [encoded_image()] * 4, "caption": [f"text number {i}" for i in range(4)]})
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


def test_parquet_rows_without_an_image_or_text_are_skipped(tmp_path):
    table = pa.table(
        {"image": [None, encoded_image(), encoded_image()], "caption": ["a", None, "c"], "id": ["p", "q", "r"]}
    )
    pq.write_table(table, tmp_path / "x.parquet")
    assert summary(read(tmp_path / "x.parquet")) == [("x/p", "bad_record"), ("x/q", "bad_record"), ("x/r", ("c",))]


NESTED = "[" * 100_000


def test_unrepresentable_record_is_skipped(tmp_path):
    write_images(tmp_path, "red")
    good = {"image": "red.png", "caption": "red"}
    half = json.dumps({**good, "image_id": "\ud800"})
    lines = [half, NESTED, json.dumps({**good, "image": "\udc80.png"}), "", json.dumps(good)]
    (tmp_path / "l.jsonl").write_text("\n".join(lines))
    items = read(tmp_path / "l.jsonl")
    assert [reason for _, reason in summary(items)] == [*["bad_record"] * 3, ("red",)]
    json.dumps([asdict(item) for item in items[:3]])
    members = [("0.png", encoded_image()), ("0.json", NESTED.encode()), ("1.png", encoded_image()), ("1.txt", b"fine")]
    members += [("2.png", encoded_image()), ("2.json", b'{"caption": "a", "image_id": "\\ud800"}')]
    assert summary(read(write_tar(tmp_path / "a.tar", members))) == [
        ("a/0", "bad_record"),
        ("a/1", ("fine",)),
        ("a/2", "bad_record"),
    ]
    (tmp_path / "n.json").write_text(NESTED)
    with pytest.raises(ValueError, match="cannot be parsed"):
        read(tmp_path / "n.json")


def test_invalid_metadata_rows_are_skipped(tmp_path):
    write_images(tmp_path, "red")
    rows = ["file_name,text", "red.png,one", "red.png,two, and a comma", f"red.png,{'x' * 200_000}", "red.png,four"]
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    assert summary(read(tmp_path)) == [
        ("metadata/00000000", ("one", "four")),
        ("metadata/00000001", "bad_record"),
        ("metadata/00000002", "bad_record"),
    ]


def test_texts_and_skipped_texts_of_a_record_keep_their_order(tmp_path):
    write_images(tmp_path, "red")
    (shard,) = find_shards(
        write_json(tmp_path / "l.json", [{"image": "red.png", "caption": ["a", "b", ".", "...", "c"]}])
    )
    assert [what for _, what in summary(shard.read())] == [("a", "b"), "empty_text", "empty_text", ("c",)]
    assert [what for _, what in summary(shard.samples())] == [("a", "b", "c"), "empty_text", "empty_text"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ETIMEDOUT])
def test_disk_error_raises_and_is_not_a_broken_image(number, tmp_path, monkeypatch):
    write_images(tmp_path, "red")
    (sample,) = read(write_json(tmp_path / "l.json", [{"image": "red.png", "caption": "a"}]))

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        read(tmp_path / "l.json")
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        sample.open_image()
