# SPDX-License-Identifier: BSD-3-Clause
"""Mixtures of streams with weights, such as 80% web pairs and 20% human ones."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import IterableDataset

from .pairs import Pair
from .skips import SkipCounts
from .streams import PairStream, State, repeat


class PairMixture(IterableDataset):
    """Endless mixture of streams. The share of each in every reader is its weight, up to one pair.

    A source that ends starts again with its own next epoch, while the others continue.

    Args:
        streams (mapping from `str` to [`~blip_hf.data.streams.PairStream`]):
            Sources by name. Give them different `id_prefix`es, unless equal image ids mean the same image.
        weights (mapping from `str` to `float`):
            Weight of each source, above 0. They are divided by their sum.

    Raises:
        ValueError: If names differ or a weight is not above 0.

    Example:
        >>> from itertools import islice
        >>> from blip_hf.data.readers import find_shards
        >>> web, human = (PairStream(find_shards(source), id_prefix=source) for source in ("scenes:50", "scenes:4"))
        >>> mixture = PairMixture({"web": web, "human": human}, {"web": 0.8, "human": 0.2})
        >>> pairs = list(islice(mixture, 40))
        >>> mixture.num_taken, web.epoch, human.epoch
        ({'web': 32, 'human': 8}, 0, 1)
    """

    def __init__(self, streams: Mapping[str, PairStream], weights: Mapping[str, float]) -> None:
        if not streams or streams.keys() != weights.keys() or not all(weight > 0 for weight in weights.values()):
            raise ValueError(
                f"The weights of the sources {', '.join(map(str, streams))} are {dict(weights)}; pass one above 0 for each."
            )
        self.streams = dict(streams)
        self.weights = {name: weights[name] / sum(weights.values()) for name in streams}
        self.num_taken = dict.fromkeys(streams, 0)

    @property
    def num_pairs(self) -> int | None:
        """Number of records of all sources, if they know it: the length of an epoch for schedules."""
        counts = [stream.num_pairs for stream in self.streams.values()]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    @property
    def skips(self) -> SkipCounts:
        """Counts of skipped records of all sources."""
        return SkipCounts.sum(stream.skips for stream in self.streams.values())

    def __len__(self) -> int:
        """`num_pairs`. Raises `TypeError` if it is unknown, as an object without a length does."""
        if self.num_pairs is None:
            raise TypeError("The number of records is only known after reading them.")
        return self.num_pairs

    def captions(self, max_captions: int) -> list[str]:
        """Captions of each source, in the shares of the mixture. Opens no image."""
        return [
            caption
            for name, stream in self.streams.items()
            for caption in stream.captions(round(max_captions * self.weights[name]))
        ]

    def __iter__(self) -> Iterator[Pair]:
        pairs = {name: repeat(stream) for name, stream in self.streams.items()}
        while True:
            name = self._next_name()
            self.num_taken[name] += 1
            yield next(pairs[name])

    def _next_name(self) -> str:
        """The source that lacks most behind its share."""
        total = sum(self.num_taken.values()) + 1
        return max(self.streams, key=lambda name: self.weights[name] * total - self.num_taken[name])

    def state_dict(self) -> State:
        """The states of all sources for this reader, which JSON can store."""
        return {
            "num_taken": dict(self.num_taken),
            "weights": dict(self.weights),
            "streams": {name: stream.state_dict() for name, stream in self.streams.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a state of the same reader, or from the output of [`merge_states`].

        Raises:
            ValueError: If the state belongs to other sources or weights.
        """
        if state["weights"] != self.weights:
            raise ValueError(
                f"The state belongs to a mixture of {state['weights']}, this one is of {self.weights}. Resume with the data"
                " and weights of the run, or start a new one."
            )
        self.num_taken = dict(state["num_taken"])
        for name, stream in self.streams.items():
            stream.load_state_dict(state["streams"][name])

    def merge_states(self, states: Sequence[Mapping[str, Any]]) -> State:
        """One state for any number of readers, from those of all readers."""
        return {
            "num_taken": dict.fromkeys(self.streams, 0),
            "weights": states[0]["weights"],
            "streams": {
                name: stream.merge_states([state["streams"][name] for state in states])
                for name, stream in self.streams.items()
            },
        }


__all__ = ["PairMixture"]
