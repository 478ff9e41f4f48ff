# SPDX-License-Identifier: BSD-3-Clause
"""Selects the texts to keep from the table of scores, without a model.

By default a text is kept if its matching probability is at least 0.5, whatever the other texts of its image are: an image
keeps any number of them ([BLIP](https://huggingface.co/papers/2201.12086), section 3.3).
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
    """Condition that a text must meet to be kept.

    Args:
        threshold (`float`, *optional*, defaults to 0.5):
            Minimum score of a text.
        keep_share (`float`, *optional*):
            Fraction of the texts to keep instead, in (0, 1]: for each source those with the highest scores in the whole
            data, including ties with the last one.
        best_per_image (`bool`, *optional*, defaults to `False`):
            Whether to keep only the best of the remaining texts of each image, the first one of ties. Images are
            identified by `image_id` within a shard.
        sources (`tuple[str, ...]`, *optional*, defaults to `("web", "synthetic")`):
            Sources to keep texts from: `"web"`, `"synthetic"` and `"human"`.
        by (`str`, *optional*, defaults to `"itm"`):
            The score: `"itm"`, the matching probability, or `"itc"`, the cosine similarity.

    Raises:
        ValueError: If a value is out of range.
    """

    threshold: float = 0.5
    keep_share: float | None = None
    best_per_image: bool = False
    sources: tuple[str, ...] = ("web", "synthetic")
    by: Literal["itm", "itc"] = "itm"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))  # JSON and YAML have lists
        unknown = [source for source in self.sources if source not in SOURCES]
        if unknown or not self.sources:
            raise ValueError(f"sources={self.sources}, expected some of {', '.join(map(repr, SOURCES))}.")
        if self.by not in ("itm", "itc"):
            raise ValueError(f"by={self.by!r}, expected 'itm' or 'itc'.")
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold={self.threshold} is not finite; pass a number such as 0.5.")
        if self.keep_share is not None and not 0 < self.keep_share <= 1:
            raise ValueError(f"keep_share={self.keep_share} is not a share of the texts; pass a value in (0, 1].")


def keep_mask(table: pa.Table, rule: Rule, cutoffs: Mapping[str, float] | None = None) -> np.ndarray:
    """Returns which rows of a table of scores a rule keeps.

    Args:
        table (`pyarrow.Table`):
            Scores of one shard or of all shards.
        rule (`Rule`):
            The rule.
        cutoffs (`Mapping[str, float]`, *optional*):
            Output of [`find_cutoffs`] for all shards. By default the table is the whole data.

    Returns:
        `np.ndarray` of type `bool`: one value per row; `False` for a text without a score.

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
    """Returns the minimum score that a rule keeps, by source.

    For `keep_share` the scores of all texts are held in memory, 4 bytes per text.

    Args:
        rule (`Rule`):
            The rule.
        read (`Callable`):
            Reads the tables of all shards. Only called for `keep_share`.

    Returns:
        `dict[str, float]`: exact in float32, infinite if nothing is kept.
    """
    if rule.keep_share is None:
        return dict.fromkeys(rule.sources, rule.threshold)
    parts: dict[str, list[np.ndarray]] = {source: [np.empty(0, np.float32)] for source in rule.sources}
    for table in read():
        scores = _scores(table, rule.by)
        for source, own in parts.items():
            own.append(scores[_is_from(table, source) & ~np.isnan(scores)])
    return {source: _cutoff(np.concatenate(own), rule.keep_share) for source, own in parts.items()}


def _cutoff(scores: np.ndarray, keep_share: float) -> float:
    """Returns the lowest of the highest scores that make up `keep_share` of all, shape `(m,)`."""
    num_kept = round(keep_share * len(scores))
    if num_kept == 0:
        return math.inf
    place = len(scores) - num_kept
    return float(np.partition(scores, place)[place])


def _scores(table: pa.Table, by: str) -> np.ndarray:
    scores = table[by].cast(pa.float32()).to_numpy(zero_copy_only=False)
    return scores.astype(np.float32) + np.float32(0)  # a null becomes NaN, and -0.0 becomes 0.0


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
