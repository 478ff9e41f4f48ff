# SPDX-License-Identifier: BSD-3-Clause
"""Small sources of image-text pairs, and what is read from them."""

import struct
import zlib

from blip_hf.data.readers import Sample, Skipped, find_shards
from tests.support.images import encode_image, plain_image


def encoded(color="red", format="PNG", size=(4, 3)) -> bytes:
    return encode_image(plain_image(color, size), format)


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 10^10 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = (b"IHDR" + header, b"IDAT")
    packed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def read(source, **options) -> list[Sample | Skipped]:
    return [item for shard in find_shards(source, **options) for item in shard.samples()]


def summary(items) -> list[tuple]:
    """Id with texts, or with the reason of what was skipped."""
    return [(item.sample_id, item.texts if isinstance(item, Sample) else item.reason) for item in items]


def color_of(sample: Sample):
    return sample.open_image().getpixel((0, 0))
