# SPDX-License-Identifier: BSD-3-Clause
"""Selects the texts of the contact sheet, reproducibly and in one pass over the scores, and reads their images."""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import numpy as np
import pyarrow as pa

from ..data.readers.samples import Sample, Shard
from ..image_utils import UnreadableImageError
from ..pages import thumbnail_url
from .filters import Rule, rule_scores


Place = Literal["near", "far"]
PLACES: tuple[Place, ...] = ("near", "far")

NUM_TEXTS = 6
"""Number of texts of each kind: source, kept or not, near the threshold or far from it."""

# Images are read from few shards, since reading a tar takes longer than the rest of a report.
_MAX_SHARDS = 8
# More texts are held than shown, in case images cannot be read.
_NUM_HELD = 2 * NUM_TEXTS
# Distances are rounded to so many decimals, so that texts at the end of a scale are a random sample.
_DECIMALS = 2


@dataclass(frozen=True)
class Example:
    """A text of the contact sheet. `place` is `"near"` the threshold or `"far"` from it."""

    shard: str
    sample_id: str
    text_index: int
    text: str
    source: str
    itm: float | None
    itc: float | None
    is_kept: bool
    place: Place


class ExampleSheet:
    """Holds the texts nearest to the threshold and farthest from it, of each source, accepted and rejected.

    A hash of the ids selects shards and breaks ties, so the selection does not depend on the order.
    """

    def __init__(self, shard_names: Sequence[str], cutoffs: Mapping[str, float], rule: Rule) -> None:
        self.shard_names = set(sorted(shard_names, key=_hash)[:_MAX_SHARDS])
        self.cutoffs = cutoffs
        self.rule = rule
        self._held: dict[tuple[str, bool, Place], list[tuple[float, int, Example]]] = {}

    def add(self, shard_name: str, table: pa.Table, is_kept: np.ndarray) -> None:
        """Considers the texts of a shard. `is_kept` has shape `(m,)`, one value per row of the table."""
        if shard_name not in self.shard_names:
            return
        scores = rule_scores(table, self.rule)  # (m,)
        sources = table["source"].to_numpy(zero_copy_only=False)  # (m,)
        for source, cutoff in self.cutoffs.items():
            distances = np.abs(scores - (cutoff if np.isfinite(cutoff) else 1.0)).round(_DECIMALS)  # (m,)
            for kept in (True, False):
                rows = np.flatnonzero((sources == source) & (is_kept == kept) & ~np.isnan(scores))
                for place, sign in zip(PLACES, (1, -1), strict=True):
                    held = self._held.get((source, kept, place), [])
                    fresh = self._ranked(shard_name, table, rows, sign * distances, kept, place)
                    # Hashes differ, so examples are never compared.
                    self._held[source, kept, place] = heapq.nsmallest(_NUM_HELD, [*held, *fresh])

    def examples(self) -> list[Example]:
        """Returns the selected texts without duplicates, the best of each kind first."""
        chosen: dict[tuple[str, str, int, str], Example] = {}
        for held in self._held.values():
            for _, _, example in held:
                chosen.setdefault((example.shard, example.sample_id, example.text_index, example.source), example)
        return list(chosen.values())

    def _ranked(
        self, shard_name: str, table: pa.Table, rows: np.ndarray, ranks: np.ndarray, kept: bool, place: Place
    ) -> Iterator[tuple[float, int, Example]]:
        ranked = ((float(ranks[row]), _row_hash(shard_name, table, row), row) for row in rows.tolist())
        for rank, digest, row in heapq.nsmallest(_NUM_HELD, ranked):
            record = table.slice(row, 1).to_pylist()[0]
            fields = {name: record[name] for name in ("sample_id", "text_index", "text", "source", "itm", "itc")}
            yield rank, digest, Example(shard=shard_name, is_kept=kept, place=place, **fields)


def add_thumbnails(examples: Iterable[Example], shards: Iterable[Shard]) -> list[tuple[Example, str]]:
    """Returns up to `NUM_TEXTS` examples of each kind with the data URLs of their images; unreadable ones are left out."""
    examples = list(examples)
    wanted: dict[str, set[str]] = {}
    for example in examples:
        wanted.setdefault(example.shard, set()).add(example.sample_id)
    images = {
        (shard.name, sample_id): url
        for shard in shards
        if shard.name in wanted
        for sample_id, url in _thumbnails(shard, wanted[shard.name])
    }
    shown: list[tuple[Example, str]] = []
    room: dict[tuple[str, bool, Place], int] = {}
    for example in examples:
        kind = (example.source, example.is_kept, example.place)
        image = images.get((example.shard, example.sample_id))
        if image is not None and room.setdefault(kind, NUM_TEXTS) > 0:
            room[kind] -= 1
            shown.append((example, image))
    return shown


def _thumbnails(shard: Shard, wanted: set[str]) -> Iterator[tuple[str, str]]:
    missing = set(wanted)
    for item in shard.samples():
        if isinstance(item, Sample) and item.sample_id in missing:
            missing.remove(item.sample_id)
            try:
                yield item.sample_id, thumbnail_url(item.open_image())
            except UnreadableImageError:
                continue
        if not missing:
            return


def _row_hash(shard_name: str, table: pa.Table, row: int) -> int:
    return _hash("/".join([shard_name, *(str(table[name][row]) for name in ("sample_id", "source", "text_index"))]))


def _hash(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest())


__all__ = ["NUM_TEXTS", "PLACES", "Example", "ExampleSheet", "add_thumbnails"]
