# SPDX-License-Identifier: BSD-3-Clause
"""Drawn scenes as a source: `scenes:NUMBER[:NOISE]`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import TypeGuard

from ..scenes import Scenes
from .records import ImageRecord
from .samples import Shard, Stream, cut_rows


_FORM = re.compile(r"scenes:(?P<number>[1-9]\d*)(:(?P<noise>0(\.\d+)?|\.\d+))?")


@dataclass(frozen=True)
class SceneSource:
    """A range of drawn scenes."""

    scenes: Scenes
    name: str = "scenes"

    def records(self) -> Iterator[ImageRecord]:
        """All records, with images as PNG."""
        return self._read(0, len(self.scenes))

    def shards(self, shard_size: int) -> list[Shard]:
        """Shards `scenes-00000`, ... of `shard_size` scenes."""
        return [
            Shard(f"{self.name}-{number:05d}", partial(self._stream, start, stop), partial(int, stop - start))
            for number, (start, stop) in enumerate(cut_rows(len(self.scenes), shard_size))
        ]

    def _read(self, start: int, stop: int) -> Iterator[ImageRecord]:
        for i in range(start, stop):
            scene = self.scenes[i]
            encoded = BytesIO()
            scene["image"].save(encoded, "PNG")
            index = scene["image_id"]
            yield ImageRecord(f"scenes/{index:08d}", index, encoded.getvalue(), [scene["caption"]], index)

    def _stream(self, start: int, stop: int) -> Stream:
        for record in self._read(start, stop):
            yield from record.samples()


def is_scenes(source: object) -> TypeGuard[str]:
    """Whether a source names drawn scenes."""
    return isinstance(source, str) and source.partition(":")[0] == "scenes"


def parse_scenes(source: str) -> Scenes:
    """Parses `scenes:NUMBER[:NOISE]`. NOISE is the fraction of swapped captions.

    Example:
        >>> parse_scenes("scenes:4000:0.45").noise_rate
        0.45
    """
    match = _FORM.fullmatch(source)
    if match is None:
        raise ValueError(f"source={source!r}, expected scenes:NUMBER[:NOISE] as in scenes:4000:0.45.")
    return Scenes(int(match["number"]), noise_rate=float(match["noise"] or 0))


__all__ = ["SceneSource", "is_scenes", "parse_scenes"]
