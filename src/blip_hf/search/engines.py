# SPDX-License-Identifier: BSD-3-Clause
"""What encodes the images of an index: a model in this process, or the actors of a Ray cluster."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..ray_pool import RayPool
from .encoder import EncodedImage, RetrievalEncoder
from .sources import FoundImage


BATCHES_PER_SHARD = 16
"""Default size of a shard of Ray."""


class LocalEngine:
    """Encodes images in this process."""

    def __init__(self, encoder: RetrievalEncoder) -> None:
        self.encoder = encoder

    def identity(self) -> dict[str, Any]:
        """As that of [`RetrievalEncoder`]."""
        return self.encoder.identity

    def encode_images(self, images: Iterable[FoundImage], *, keep_states: bool) -> Iterator[list[EncodedImage]]:
        """Encodes images in order and yields them in batches."""
        return self.encoder.encode_images(images, keep_states=keep_states)


@dataclass(frozen=True)
class ImageShard:
    """Neighbouring images: whole batches, since rounding depends on the batch."""

    images: list[FoundImage]

    def __str__(self) -> str:
        return f"from {self.images[0]} to {self.images[-1]}"


class RayEngine:
    """Encodes images in the actors of a Ray cluster, with the vectors of a [`LocalEngine`] of the same batch size.

    Nodes open image files themselves; records of tars, Parquet files and data sets are sent to them. Shards are written in
    order, so the files of the index are those of the local engine.
    """

    def __init__(
        self, pool: RayPool[RetrievalEncoder], *, batch_size: int, batches_per_shard: int = BATCHES_PER_SHARD
    ) -> None:
        self.pool = pool
        self.shard_size = batch_size * batches_per_shard

    def identity(self) -> dict[str, Any]:
        """As that of [`RetrievalEncoder`]."""
        return self.pool.call(_identity, what="the model")

    def encode_images(self, images: Iterable[FoundImage], *, keep_states: bool) -> Iterator[list[EncodedImage]]:
        """Encodes images in order and yields them in shards."""
        for _, encoded in self.pool.map(_encode_shard, self._cut(iter(images)), keep_states, in_order=True):
            yield encoded

    def _cut(self, images: Iterator[FoundImage]) -> Iterator[ImageShard]:
        while shard := list(islice(images, self.shard_size)):
            yield ImageShard(shard)


def _identity(encoder: RetrievalEncoder) -> dict[str, Any]:
    return encoder.identity


def _encode_shard(encoder: RetrievalEncoder, shard: ImageShard, keep_states: bool) -> list[EncodedImage]:
    batches = encoder.encode_images(shard.images, keep_states=keep_states)
    return [encoded for batch in batches for encoded in batch]


__all__ = ["BATCHES_PER_SHARD", "ImageShard", "LocalEngine", "RayEngine"]
