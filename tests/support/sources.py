# SPDX-License-Identifier: BSD-3-Clause
"""Reads small sources of image-text pairs."""

import struct
import zlib

from blip_hf.data.readers import Sample, Skipped, find_shards


def bomb() -> bytes:
    """A PNG of a few bytes whose header claims 10^10 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = (b"IHDR" + header, b"IDAT")
    packed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def read(source, **options) -> list[Sample | Skipped]:
    return [item for shard in find_shards(source, **options) for item in shard.samples()]


def summary(items) -> list[tuple]:
    """The id of each item with its texts, or with the reason of the skip."""
    return [(item.sample_id, item.texts if isinstance(item, Sample) else item.reason) for item in items]


def color_of(sample: Sample):
    return sample.open_image().getpixel((0, 0))
