# SPDX-License-Identifier: BSD-3-Clause
"""Which texts are kept: rules over the table of scores, without a model.

By default a text stays if the filter holds a match for at least as likely as not, whatever the image's other texts
are: an image keeps any number of them ([BLIP](https://huggingface.co/papers/2201.12086), section 3.3).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from .scores import SOURCES


@dataclass(frozen=True)
class Rule:
    """What a text has to reach to be kept.

    Args:
        threshold (`float`, *optional*, defaults to 0.5):
            Least score of a text that is kept.
        keep_share (`float`, *optional*):
            Share of the texts to keep instead, in (0, 1]: of each source those with the highest scores in the whole
            data, and those that equal the last one of them.
        best_per_image (`bool`, *optional*, defaults to `False`):
            Whether only the best of the texts left stays for each image, the first one of equals. Images are told
            apart by `image_id` within a shard.
        sources (`tuple[str, ...]`, *optional*, defaults to `("web", "synthetic")`):
            Sources to keep texts from, of `"web"`, `"synthetic"` and `"human"`.
        by (`str`, *optional*, defaults to `"itm"`):
            The score: `"itm"`, the probability of a match, or `"itc"`, the cosine.

    Raises:
        ValueError: If a value is out of its range.
    """

    threshold: float = 0.5
    keep_share: float | None = None
    best_per_image: bool = False
    sources: tuple[str, ...] = ("web", "synthetic")
    by: Literal["itm", "itc"] = "itm"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))  # a list, where it was read from a file
        unknown = [source for source in self.sources if source not in SOURCES]
        if unknown or not self.sources:
            raise ValueError(f"sources={self.sources}, expected some of {', '.join(map(repr, SOURCES))}.")
        if self.by not in ("itm", "itc"):
            raise ValueError(f"by={self.by!r}, expected 'itm' or 'itc'.")
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold={self.threshold} is no score; pass a number such as 0.5.")
        if self.keep_share is not None and not 0 < self.keep_share <= 1:
            raise ValueError(f"keep_share={self.keep_share} is not a share of the texts; pass a value in (0, 1].")


def keep_mask(table: pa.Table, rule: Rule, cutoffs: Mapping[str, float] | None = None) -> np.ndarray:
    """Which rows of a table of scores a rule keeps.

    Args:
        table (`pyarrow.Table`):
            Scores of a shard, or of all of them.
        rule (`Rule`):
            The rule.
        cutoffs (`Mapping[str, float]`, *optional*):
            What [`find_cutoffs`] returns for all shards. By default the table is taken for the whole data.

    Returns:
        `np.ndarray` of type `bool`: one value a row. A text without a score is not kept.

    Example:
        >>> table = pa.table(
        ...     {"image_id": ["a", "a"], "source": ["web", "synthetic"], "itm": pa.array([0.4, 0.9], "float32")}
        ... )
        >>> keep_mask(table, Rule()).tolist()
        [False, True]
    """
    cutoffs = find_cutoffs(rule, lambda: [table]) if cutoffs is None else cutoffs
    scores = _scores(table, rule.by)
    mask = np.zeros(len(table), dtype=bool)
    for source, cutoff in cutoffs.items():
        # A NaN compares as false.
        mask |= _is_from(table, source) & (scores >= np.float32(cutoff))
    return _best_of_each(table, scores, mask) if rule.best_per_image else mask


def find_cutoffs(rule: Rule, read: Callable[[], Iterable[pa.Table]]) -> dict[str, float]:
    """Least score that a rule keeps, by source.

    A share takes two passes over the tables: scores are counted by their upper 16 bits, then those that share the bits
    of the last one to keep by their lower 16 bits. That is exact, in half a megabyte a source.

    Args:
        rule (`Rule`):
            The rule.
        read (`Callable`):
            Starts reading the tables of all shards; not called where the rule names no share.

    Returns:
        `dict[str, float]`: exact in float32, infinite where nothing is kept.
    """
    if rule.keep_share is None:
        return dict.fromkeys(rule.sources, rule.threshold)
    upper = {source: np.zeros(2**16, dtype=np.int64) for source in rule.sources}
    for table in read():
        for source, counts in upper.items():
            counts += np.bincount(_order(table, source, rule.by) >> 16, minlength=2**16)
    wanted = {source: round(rule.keep_share * int(counts.sum())) for source, counts in upper.items()}
    bins = {source: _bin_of(counts, wanted[source]) for source, counts in upper.items()}
    lower = {source: np.zeros(2**16, dtype=np.int64) for source in rule.sources}
    for table in read():
        for source, counts in lower.items():
            order = _order(table, source, rule.by)
            counts += np.bincount(order[order >> 16 == bins[source]] & 0xFFFF, minlength=2**16)
    cutoffs = {}
    for source in rule.sources:
        num_above = int(upper[source][bins[source] + 1 :].sum())
        low_bits = _bin_of(lower[source], wanted[source] - num_above)
        cutoffs[source] = _score_of(bins[source] << 16 | low_bits) if wanted[source] else math.inf
    return cutoffs


def _bin_of(counts: np.ndarray, wanted: int) -> int:
    """The highest bin that has, with those above it, as many as are wanted."""
    from_above = np.cumsum(counts[::-1])[::-1]
    return int(np.flatnonzero(from_above >= wanted)[-1])


def _order(table: pa.Table, source: str, by: str) -> np.ndarray:
    """Unsigned integers in the order of the scores of a source, without those that are no number."""
    scores = _scores(table, by)[_is_from(table, source)]
    bits = scores[~np.isnan(scores)].view(np.uint32)
    return np.where(bits >> 31 == 1, ~bits, bits | np.uint32(1 << 31))


def _score_of(order: int) -> float:
    """The score at a place in the order."""
    bits = order ^ (1 << 31) if order >> 31 else ~order & 0xFFFFFFFF
    return float(np.uint32(bits).view(np.float32))


def _scores(table: pa.Table, by: str) -> np.ndarray:
    scores = table[by].cast(pa.float32()).to_numpy(zero_copy_only=False)
    return scores.astype(np.float32) + np.float32(0)  # a null is NaN, and -0.0 is 0.0


def _is_from(table: pa.Table, source: str) -> np.ndarray:
    return table["source"].to_numpy(zero_copy_only=False) == source


def _best_of_each(table: pa.Table, scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    best: dict[str, int] = {}
    image_ids = table["image_id"].to_pylist()
    for row in np.flatnonzero(mask).tolist():
        if scores[row] > scores[best.setdefault(image_ids[row], row)]:
            best[image_ids[row]] = row
    mask = np.zeros_like(mask)
    mask[list(best.values())] = True
    return mask


__all__ = ["Rule", "find_cutoffs", "keep_mask"]
