# SPDX-License-Identifier: BSD-3-Clause
"""Streams of numbered pairs for tests, and readers of several processes."""

import io
import tarfile

from PIL import Image

from blip_hf.data.readers import Sample, Shard, Skipped
from blip_hf.data.streams import PairStream


def numbered_shards(sizes, captions_per_image=1, broken=()):
    """Shards of samples numbered through all of them. Each caption is the number of its pair."""
    shards, number = [], 0
    for shard, size in enumerate(sizes):
        items = [_item(shard, number + i, captions_per_image, broken) for i in range(size)]
        shards.append(Shard(f"shard-{shard:02d}", lambda items=items: iter(items), lambda size=size: size))
        number += size
    return shards


def _item(shard, number, captions_per_image, broken):
    sample_id = f"shard-{shard:02d}/{number:04d}"
    if number in broken:
        return Skipped(sample_id, "bad_record", "it is broken")
    texts = tuple(str(number * captions_per_image + rank) for rank in range(captions_per_image))
    return Sample(sample_id, _PIXEL, texts, str(number))


def numbers_of(pairs):
    return [int(pair["caption"]) for pair in pairs]


def make_reader(shards, reader=0, num_readers=1, **options):
    """The stream of one of several processes."""
    stream = PairStream(shards, **{"seed": 1, "buffer_size": 12, "num_open_shards": 3, **options})
    stream.process = (reader, num_readers)
    return stream


def write_tar(path, num_pairs, start=0, broken=()):
    """A tar of one-pixel JPEGs, whose caption is the number of the pair."""
    with tarfile.open(path, "w") as tar:
        for number in range(start, start + num_pairs):
            for suffix, content in (
                ("jpg", b"no image" if number in broken else _PIXEL),
                ("txt", f"{number}".encode()),
            ):
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def _pixel():
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "JPEG")
    return buffer.getvalue()


_PIXEL = _pixel()
