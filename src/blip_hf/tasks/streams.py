# SPDX-License-Identifier: BSD-3-Clause
"""Training sets that are streamed instead of read with random access: their options, and their construction."""

from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from .options import option
from .source import Source, is_scenes


if TYPE_CHECKING:
    from ..data.mixtures import PairMixture
    from ..data.readers import Shard
    from ..data.streams import PairStream

# Captions that a vocabulary is trained on.
NUM_VOCABULARY_CAPTIONS = 100_000


@dataclass(kw_only=True)
class StreamOptions:
    """Options of streamed training sets."""

    stream: bool = option(
        False,
        "Read --data as a stream of shards, for sets of any size; --data_weights and --num_splits do so anyway",
    )
    data_weights: list[float] | None = option(
        None, "Weight of each source of --data in a mixture, such as 0.8 0.2; sources that end start again", "WEIGHT"
    )
    num_splits: int = option(
        1, "Parts of the shards of each source; an epoch reads one, as the paper does with LAION", "N"
    )
    buffer_size: int = option(1024, "Records that each loader worker holds to shuffle a stream", "N")

    def is_streamed(self) -> bool:
        """Returns whether the training set is a stream."""
        return self.stream or bool(self.data_weights) or self.num_splits > 1


def make_stream(
    options: Any, transform: Any | None, image_size: int, *, seed: int, max_bad_share: float
) -> "PairStream | PairMixture":
    """Makes the stream of the training set, or a mixture if sources have weights.

    Raises:
        ValueError: If the weights do not fit the sources, or a source cannot be read.
    """
    from ..data.mixtures import PairMixture
    from ..data.streams import PairStream

    def stream(shards: list["Shard"], id_prefix: str = "") -> PairStream:
        return PairStream(
            shards,
            transform,
            seed,
            buffer_size=options.buffer_size,
            num_splits=options.num_splits,
            max_bad_share=max_bad_share,
            id_prefix=id_prefix,
        )

    source = options.training_source()
    weights = options.data_weights
    if weights is None:
        return stream(_shards_of(source, image_size))
    if len(weights) != len(source.data) or len(set(source.data)) < len(source.data):
        raise ValueError(
            f"data_weights has {len(weights)} weights and data the sources {', '.join(source.data)}. Pass each source once, and"
            " one weight for each."
        )
    names = _stream_names(source.data)
    streams = {
        name: stream(_shards_of(own, image_size), name) for name, own in zip(names, source.singly(), strict=True)
    }
    return PairMixture(streams, dict(zip(names, weights, strict=True)))


def _stream_names(sources: list[str]) -> list[str]:
    """Names the sources by their files and folders, which do not change if the data are moved; equal names by number."""
    names = [PurePath(source).name for source in sources]
    return [name if names.count(name) == 1 else f"{number}/{name}" for number, name in enumerate(names)]


def _shards_of(source: Source, image_size: int) -> list["Shard"]:
    from ..data.readers import find_shards

    sources = [own.scenes(image_size) if is_scenes(own.data[0]) else own.data[0] for own in source.singly()]
    return find_shards(
        sources,
        image_root=source.image_root,
        allow_outside=source.allow_outside,
        split=source.split or "train",
    )


__all__ = ["NUM_VOCABULARY_CAPTIONS", "StreamOptions", "make_stream"]
