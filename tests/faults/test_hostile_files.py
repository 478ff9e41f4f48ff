# SPDX-License-Identifier: BSD-3-Clause
"""Broken and hostile files end soon, in little memory, with a reason. A test that hangs here is a failure."""

import gzip
import json
import os
import tarfile
import time
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageFile

from blip_hf import image_files, image_utils
from blip_hf.data.pairs import PairDataset
from blip_hf.data.readers import find_shards, load_pairs, parquet, tar_stream
from blip_hf.image_utils import MAX_IMAGE_PIXELS, UnreadableImageError, find_image_error, open_image
from tests.support.files import write_json
from tests.support.images import encoded_image, write_images
from tests.support.sources import read, summary


MEBIBYTE = 2**20


def good_members() -> bytes:
    """A record without the end of an archive."""
    blocks = []
    for name, content in (("0.png", encoded_image()), ("0.txt", b"a")):
        blocks += [header(name, len(content)), content.ljust(-len(content) % 512 + len(content), b"\0")]
    return b"".join(blocks)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def pax(content: bytes) -> bytes:
    return header("x", len(content), tarfile.XHDTYPE) + content.ljust(-len(content) % 512 + len(content), b"\0")


END = bytes(1024)
HEADERS = {
    "member of 8 TiB": header("1.bin", 2**43),
    "image of 8 TiB": header("1.png", 2**43),
    "text of 8 TiB": header("1.txt", 2**43),
    "pax header of 32 MiB": pax(b"16 abc=defghijk\n" * (2 * MEBIBYTE)),
    "name of 32 MiB": header("x", 32 * MEBIBYTE, tarfile.GNUTYPE_LONGNAME) + b"a" * 32 * MEBIBYTE,
    "pax header that declares 8 TiB": header("x", 2**43, tarfile.XHDTYPE),
    "3000 pax headers": pax(b"9 abc=de\n") * 3000,
    "pax header with a size in words": pax(b"22 GNU.sparse.size=abc\n"),
    "sparse map without an end": pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n")
    + header("1.png", 40 * MEBIBYTE)
    + b"99999999999\n"
    + b"1\n" * (20 * MEBIBYTE),
}


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("kind", HEADERS)
def test_hostile_headers_end_a_tar_in_little_memory(kind, compression, tmp_path):
    content = good_members() + HEADERS[kind] + good_members() + END
    path = tmp_path / ("a.tar" if compression is None else "a.tar.gz")
    path.write_bytes(content if compression is None else gzip.compress(content, 1))
    del content
    tracemalloc.start()
    try:
        *_, last = items = read(path)
        assert tracemalloc.get_traced_memory()[1] < 24 * MEBIBYTE
    finally:
        tracemalloc.stop()
    assert summary(items)[0] == ("a/0", ("a",))
    assert getattr(last, "reason", None) in ("truncated_tar", "huge_image", "huge_text", "bad_record")


def test_first_header_may_be_hostile(tmp_path):
    for number, content in enumerate(HEADERS.values()):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(content + END)
        assert read(path)


def test_tar_that_expands_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_stream, "FREE_BYTES", MEBIBYTE)
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(good_members() + header("z.bin", 64 * MEBIBYTE) + bytes(64 * MEBIBYTE) + END))
    items = read(path)
    assert summary(items) == [("a/0", ("a",)), ("a/0", "truncated_tar")]
    assert "expands to more than 100 times" in items[-1].detail


def test_usual_long_names_and_attributes_are_read(tmp_path):
    path = tmp_path / "a.tar"
    name = "b/" * 60 + "é" * 100
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for suffix in ("png", "txt"):
            member = tarfile.TarInfo(f"{name}.{suffix}")
            member.pax_headers = {"SCHILY.xattr.user.note": "x" * 60_000}
            (tmp_path / "f").write_bytes(encoded_image() if suffix == "png" else b"a")
            member.size = (tmp_path / "f").stat().st_size
            with (tmp_path / "f").open("rb") as file:
                tar.addfile(member, file)
    assert summary(read(path)) == [(f"a/{name}", ("a",))]


# Files that are no files


@pytest.fixture
def pipe(tmp_path) -> Path:
    os.mkfifo(tmp_path / "pipe.png")
    return tmp_path / "pipe.png"


def test_pipe_or_device_is_no_image(pipe):
    for path in (pipe, Path("/dev/zero")):
        assert find_image_error(str(path))[0] == "unreadable_image"
        with pytest.raises(UnreadableImageError, match=f"{path}: it is a pipe, socket or device"):
            open_image(path)


class SlowFormat(ImageFile.ImageFile):
    """An image whose header takes for ever."""

    def _open(self) -> None:
        time.sleep(600)


class SlowImages(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> str:
        image_utils.MAX_IMAGE_SECONDS = 0.5
        Image.register_open("SLOW", SlowFormat, lambda prefix: prefix.startswith(b"SLOW"))
        image_files.image_formats.cache_clear()
        try:
            open_image(b"SLOW image")
        except UnreadableImageError as error:
            return str(error)


def test_slow_image_is_skipped_in_a_loader_worker():
    (batch,) = torch.utils.data.DataLoader(SlowImages(), num_workers=1)
    assert "reading it takes more than 0.5 seconds" in batch[0]


def test_pipe_in_a_list_is_skipped_in_training(pipe, tmp_path):
    write_images(tmp_path, "red")
    records = [{"image": name, "caption": "a"} for name in ("pipe.png", "red.png")]
    pairs = PairDataset(load_pairs(write_json(tmp_path / "l.json", records)))
    assert pairs.get(0) is None
    assert pairs[0]["image"].getpixel((0, 0)) == (255, 0, 0)
    assert pairs.num_skipped == 1


@pytest.mark.parametrize("suffix", ["tar", "parquet", "json", "jsonl", "png"])
def test_pipe_as_a_source_is_refused(suffix, tmp_path):
    os.mkfifo(tmp_path / f"a.{suffix}")
    with pytest.raises(ValueError, match=f"a.{suffix} is a pipe, socket or device"):
        find_shards(tmp_path / f"a.{suffix}")


# Pixels


def test_pixels_are_bounded_when_an_image_is_opened(tmp_path):
    side = int(MAX_IMAGE_PIXELS**0.5)
    Image.new("1", (side, side)).save(tmp_path / "limit.png")
    Image.new("1", (side, side + 1)).save(tmp_path / "over.png")
    assert open_image(tmp_path / "limit.png").size == (side, side)
    with pytest.raises(UnreadableImageError, match=f"it has {side} x {side + 1} pixels") as error:
        open_image(tmp_path / "over.png")
    assert error.value.kind == "too_large"
    # The same with a smaller target, for which a JPEG is decoded at an eighth of its size.
    Image.new("L", (side, side + 1)).save(tmp_path / "over.jpg")
    with pytest.raises(UnreadableImageError, match="pixels"):
        open_image(tmp_path / "over.jpg", min_size=384)


def test_list_with_a_huge_record_is_refused(tmp_path):
    write_images(tmp_path, "red")
    good = json.dumps({"image": "red.png", "caption": "a"})
    (tmp_path / "l.jsonl").write_text(good + "\n" + '{"image": "' + "x" * 40 * MEBIBYTE + "\n" + good)
    assert summary(read(tmp_path / "l.jsonl")) == [
        ("l/00000000", ("a", "a")),  # the same image
        ("l/00000001", "bad_record"),
    ]
    (tmp_path / "l.json").write_text(f'[{good}, {{"image": "{"x" * 40 * MEBIBYTE}')
    with pytest.raises(ValueError, match=r"l.json cannot be parsed after byte 39 .a record has more than 16777216"):
        read(tmp_path / "l.json")


def test_parquet_that_expands_too_much_loses_that_row_group(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "FREE_BYTES", MEBIBYTE)
    images = [bytes(8 * MEBIBYTE), encoded_image()]
    table = pa.table({"image": images, "caption": ["a", "b"]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1, compression="zstd")
    items = read(tmp_path / "a.parquet")
    assert summary(items) == [("a/00000000", "bad_record"), ("a/00000001", ("b",))]
    assert "column 'image' expands from" in items[0].detail
