# SPDX-License-Identifier: BSD-3-Clause
"""Kinds of bad records for benchmarks and tests, each with the reason that it must be skipped for.

Every record of `LIST_RECORDS`, `TAR_RECORDS` and `PARQUET_RECORDS` is skipped once, wherever it is among good records.
"""

import io
import json
import os
import pickle
import struct
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from blip_hf.data.readers.samples import MAX_TEXT_LENGTH
from blip_hf.data.readers.tar import MAX_TEXT_BYTES


Content = TypeVar("Content")


@dataclass(frozen=True)
class BadRecord(Generic[Content]):
    """A record, in the form of its file format, that a reader must skip."""

    kind: str
    reason: str
    content: Content
    is_found_by_decoding: bool = False  # the header of its image is valid


def reasons(records: Iterable[BadRecord]) -> Counter[str]:
    """The expected number of skipped records by reason."""
    return Counter(record.reason for record in records)


# Images


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes with a valid header and no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR" + header, b"IDAT")
    packed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _encode(image: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


GOOD_IMAGE = _encode(Image.new("RGB", (16, 16), "red"), "JPEG")
_NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, size=(64, 64, 3), dtype=np.uint8))
_TRUNCATED_BODY = _encode(_NOISE, "JPEG")[:-2000]
_BROKEN_BODY = _encode(_NOISE, "PNG")[:-2000] + b"\xff" * 2000

_BAD_IMAGES = {
    "empty_image": ("unreadable_image", b""),
    "text_as_image": ("unreadable_image", b"not an image"),
    "page_as_image": ("unreadable_image", b"<!DOCTYPE html><title>404 Not Found</title>"),
    "svg_as_image": ("unreadable_image", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'),
    "postscript_as_image": ("unreadable_image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"),
    "pickle_as_image": ("unreadable_image", pickle.dumps(["an", "image"])),
    "truncated_header": ("unreadable_image", GOOD_IMAGE[:20]),
    "no_pixels": ("unreadable_image", png_header(0, 0)),
    "pixel_bomb": ("huge_image", png_header(100_000, 100_000)),
    "over_pixel_limit": ("huge_image", png_header(8193, 8193)),
}
_BAD_BODIES = {"truncated_body": _TRUNCATED_BODY, "broken_body": _BROKEN_BODY}


# WebDataset tars: the suffixes and contents of the members of a key


def _tar_records() -> list[BadRecord[dict[str, bytes]]]:
    images = [BadRecord(kind, reason, {"jpg": image, "txt": b"a"}) for kind, (reason, image) in _BAD_IMAGES.items()]
    bodies = [
        BadRecord(kind, "unreadable_image", {"jpg": image, "txt": b"a"}, is_found_by_decoding=True)
        for kind, image in _BAD_BODIES.items()
    ]
    others = {
        "member_without_image": ("bad_record", {"txt": b"a"}),
        "member_without_text": ("bad_record", {"jpg": GOOD_IMAGE}),
        "member_with_dots": ("bad_record", {"v1.jpg": GOOD_IMAGE, "v1.txt": b"a"}),
        "text_in_another_encoding": ("bad_record", {"jpg": GOOD_IMAGE, "txt": b"\xff caf\xe9"}),
        "huge_text_member": ("huge_text", {"jpg": GOOD_IMAGE, "txt": b"x" * (MAX_TEXT_BYTES + 1)}),
        "list_as_json": ("bad_record", {"jpg": GOOD_IMAGE, "json": b"[]"}),
        "broken_json": ("bad_record", {"jpg": GOOD_IMAGE, "json": b'{"caption": "a'}),
        "nested_json": ("bad_record", {"jpg": GOOD_IMAGE, "json": b"[" * 100_000}),
    }
    return [*images, *bodies, *(BadRecord(kind, *each) for kind, each in others.items())]


TAR_RECORDS = _tar_records()


def tar_members(record: BadRecord[dict[str, bytes]], key: str) -> list[tuple[str, bytes]]:
    """Names and contents of the members of a record."""
    return [(f"{key}.{suffix}", content) for suffix, content in record.content.items()]


# JSON lines: one line each, in a folder that `write_bad_files` wrote


def _line(**fields: Any) -> bytes:
    return json.dumps({"image": "good.jpg", "caption": "a", **fields}).encode()


LIST_RECORDS = [
    BadRecord(kind, reason, line)
    for kind, (reason, line) in {
        "lost_file": ("unreadable_image", _line(image="lost.png")),
        "folder_as_image": ("unreadable_image", _line(image="folder.png")),
        "pipe_as_image": ("unreadable_image", _line(image="pipe.png")),
        "url_as_image": ("unreadable_image", _line(image="http://localhost:9/a.png")),
        "absolute_path_elsewhere": ("outside_folder", _line(image="/etc/passwd")),
        "path_above_folder": ("outside_folder", _line(image="../good.jpg")),
        "link_to_no_image": ("unreadable_image", _line(image="link.png")),
        "path_is_number": ("bad_record", _line(image=5)),
        "path_is_empty": ("bad_record", _line(image="")),
        "path_with_null_character": ("unreadable_image", _line(image="good\0.png")),
        "path_with_half_a_surrogate_pair": ("bad_record", _line(image="good\udc80.png")),
        "caption_is_missing": ("bad_record", b'{"image": "good.jpg"}'),
        "caption_is_number": ("bad_record", _line(caption=5)),
        "caption_with_half_a_surrogate_pair": ("bad_record", _line(caption="half \ud800 of a pair")),
        "caption_is_empty": ("empty_text", _line(caption="")),
        "caption_without_words": ("empty_text", _line(caption=" ... ")),
        "caption_is_huge": ("huge_text", _line(caption="x" * (MAX_TEXT_LENGTH + 1))),
        "image_id_over_64_bits": ("bad_record", _line(image_id=10**30)),
        "image_id_is_bool": ("bad_record", _line(image_id=True)),
        "image_id_is_not_a_number": ("bad_record", _line(image_id=float("nan"))),
        "image_id_with_half_a_surrogate_pair": ("bad_record", _line(image_id="\ud800")),
        "number_with_5000_digits": (
            "bad_record",
            b'{"image": "good.jpg", "caption": "a", "image_id": %s}' % (b"9" * 5000),
        ),
        "line_is_text": ("bad_record", b'"good.jpg"'),
        "line_is_truncated": ("bad_record", b'{"image": "good.jpg", "caption": "a'),
        "line_is_nested": ("bad_record", b"[" * 100_000),
    }.items()
]


def write_bad_files(folder: Path) -> None:
    """Writes the files that `LIST_RECORDS` and good lines name: `good.jpg`, a folder, a pipe and a link."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "good.jpg").write_bytes(GOOD_IMAGE)
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "link.png").symlink_to("/etc/passwd")


# Parquet: rows of the columns `image` (bytes) and `caption`

PARQUET_RECORDS = [
    BadRecord("row_without_image", "bad_record", {"image": None, "caption": "a"}),
    BadRecord("row_without_caption", "bad_record", {"image": GOOD_IMAGE, "caption": None}),
    BadRecord("row_with_empty_caption", "empty_text", {"image": GOOD_IMAGE, "caption": ""}),
    BadRecord("row_with_pixel_bomb", "huge_image", {"image": png_header(100_000, 100_000), "caption": "a"}),
    BadRecord(
        "row_with_truncated_body",
        "unreadable_image",
        {"image": _TRUNCATED_BODY, "caption": "a"},
        is_found_by_decoding=True,
    ),
]

ALL_RECORDS = [*LIST_RECORDS, *TAR_RECORDS, *PARQUET_RECORDS]
