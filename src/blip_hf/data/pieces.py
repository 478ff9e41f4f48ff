# SPDX-License-Identifier: BSD-3-Clause
"""Splits the pairs of an epoch among readers (loader workers of all processes) without overlap or loss."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd


# With fewer pieces for each reader, shares that differ by one piece would be too unequal.
_MIN_PIECES = 8


@dataclass(frozen=True)
class Piece:
    """Every `stride`-th pair of a shard from position `start` on, in the shuffled order of an epoch."""

    epoch: int
    shard: int
    start: int = 0
    stride: int = 1

    def cut(self, num_parts: int) -> "list[Piece]":
        """Interleaved parts of the piece."""
        return [
            Piece(self.epoch, self.shard, self.start + part * self.stride, self.stride * num_parts)
            for part in range(num_parts)
        ]

    def to_list(self) -> list[int]:
        """The fields, for JSON."""
        return [self.epoch, self.shard, self.start, self.stride]


def pieces_of_epoch(epoch: int, num_shards: int, *, seed: int, num_splits: int = 1) -> list[Piece]:
    """All shards of an epoch in random order, or with `num_splits` every `num_splits`-th shard."""
    shards = list(range(epoch % num_splits, num_shards, num_splits))
    random.Random(f"{seed}/{epoch}/shards").shuffle(shards)
    return [Piece(epoch, shard) for shard in shards]


def split_pieces(pieces: Sequence[Piece], num_readers: int) -> list[list[Piece]]:
    """Deals pieces to readers. Cuts each piece if there are too few for equal shares."""
    is_cut = len(pieces) % num_readers > 0 and len(pieces) < _MIN_PIECES * num_readers
    num_parts = num_readers // gcd(len(pieces), num_readers) if is_cut else 1
    num_groups = num_readers // num_parts
    own: list[list[Piece]] = [[] for _ in range(num_readers)]
    for number, piece in enumerate(pieces):
        turn, group = divmod(number, num_groups)
        for part, cut in enumerate(piece.cut(num_parts)):
            # The first part of a short shard may be longer, so the readers of a group take turns.
            own[group * num_parts + (part + turn) % num_parts].append(cut)
    return own


__all__ = ["Piece", "pieces_of_epoch", "split_pieces"]
