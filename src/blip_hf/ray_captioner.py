# SPDX-License-Identifier: BSD-3-Clause
"""Captions images with the actors of a Ray cluster, with the captions of [`~blip_hf.captioner.BlipCaptioner`]."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from .captioner import BlipCaptioner, Caption, single_images
from .data.image_batches import OnError
from .image_utils import ImageSource
from .ray_pool import RayCluster, RayPool


BATCHES_PER_SHARD = 16
"""Default size of a shard. Its first batch is read while the model waits."""


@dataclass(frozen=True)
class ImageShard:
    """Neighbouring images that one task captions: whole batches, since sampling and rounding depend on the batch."""

    first_index: int
    images: list[ImageSource]

    def __str__(self) -> str:
        return f"of the images {self.first_index} to {self.first_index + len(self.images) - 1}"


class RayCaptioner:
    """Captions images with the actors of a Ray cluster. Use [`RayCaptioner.from_pretrained`].

    The captions are those of a [`~blip_hf.captioner.BlipCaptioner`] with the same batch size and as many threads as
    `num_cpus` of the cluster, whatever the number of actors, also if some of them die.

    Args:
        pool (`RayPool`):
            Actors that load a [`~blip_hf.captioner.BlipCaptioner`] each.
        batch_size (`int`):
            Batch size of these captioners.
        shard_size (`int`, *optional*):
            Images of a task, rounded up to whole batches. Defaults to 16 batches.
    """

    def __init__(self, pool: RayPool[BlipCaptioner], *, batch_size: int, shard_size: int | None = None) -> None:
        num_batches = BATCHES_PER_SHARD if shard_size is None else -(-shard_size // batch_size)
        if num_batches < 1:
            raise ValueError(f"shard_size={shard_size} is too small. Pass 1 or more.")
        self.pool = pool
        self.shard_size = num_batches * batch_size

    @classmethod
    @contextmanager
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        cluster: RayCluster | None = None,
        shard_size: int | None = None,
        device: str | None = None,
        batch_size: int = 8,
        **kwargs: Any,
    ) -> "Iterator[RayCaptioner]":
        """Connects to a cluster within the block. Each actor loads the models once.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Folder or model id, which all nodes can read.
            cluster (`RayCluster`, *optional*):
                The cluster and the resources of each actor.
            shard_size (`int`, *optional*):
                Images of a task, rounded up to whole batches. Defaults to 16 batches.
            device, batch_size, **kwargs:
                As in [`~blip_hf.captioner.BlipCaptioner.from_pretrained`].

        Raises:
            ImportError: If Ray is not installed.
            ConnectionError: If there is no cluster at the address.

        Example:
            >>> with RayCaptioner.from_pretrained("/data/captioner") as captioner:  # doctest: +SKIP
            ...     texts = [caption.text for caption in captioner.iter_captions(paths)]
        """
        load = partial(
            BlipCaptioner.from_pretrained,
            pretrained_model_name_or_path,
            device=device,
            batch_size=batch_size,
            **kwargs,
        )
        with RayPool.open(load, cluster, device=device) as pool:
            yield cls(pool, batch_size=batch_size, shard_size=shard_size)

    def iter_captions(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        num_return_sequences: int = 1,
        return_scores: bool = False,
        on_error: OnError = "raise",
        first_index: int = 0,
    ) -> Iterator[Caption]:
        """As [`~blip_hf.captioner.BlipCaptioner.iter_captions`]: the captions in the order of the images.

        Nodes open paths themselves; other images are sent to them.

        Raises:
            ChildProcessError: If Ray gives up on a shard because its actors died.
        """
        return self.caption_shards(
            self.cut(images, first_index),
            in_order=True,
            num_return_sequences=num_return_sequences,
            return_scores=return_scores,
            on_error=on_error,
        )

    def cut(self, images: ImageSource | Iterable[ImageSource], first_index: int = 0) -> Iterator[ImageShard]:
        """Cuts images into shards. `first_index` is the start of a batch."""
        rest = single_images(images)
        while shard := list(islice(rest, self.shard_size)):
            yield ImageShard(first_index, shard)
            first_index += len(shard)

    def caption_shards(self, shards: Iterable[ImageShard], *, in_order: bool, **settings: Any) -> Iterator[Caption]:
        """Captions of shards, in order or as each shard ends. `settings` are those of `iter_captions`."""
        for _, captions in self.pool.map(_caption_shard, shards, settings, in_order=in_order):
            yield from captions


def _caption_shard(captioner: BlipCaptioner, shard: ImageShard, settings: dict[str, Any]) -> list[Caption]:
    return list(captioner.iter_captions(shard.images, first_index=shard.first_index, **settings))


__all__ = ["BATCHES_PER_SHARD", "ImageShard", "RayCaptioner"]
