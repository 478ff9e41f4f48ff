# SPDX-License-Identifier: BSD-3-Clause
"""Selects the texts to keep from the table of scores, without a model.

By default a text is kept if its matching probability is at least 0.5, whatever the other texts of its image are: an image
keeps any number of them ([BLIP](https://huggingface.co/papers/2201.12086), section 3.3).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ..configuration_blip import DEFAULT_TEMPERATURE
from ..pair_scores import posterior_scores
from .scores import SOURCES


# The threshold of probabilities and cosines, that of the paper.
_THRESHOLD = 0.5
# The largest probability below 1 in float32. Log-odds of a probability that was rounded to 1 are those of this one.
_MAX_PROBABILITY = 1 - 2**-24


@dataclass(frozen=True)
class Rule:
    """Condition that a text must meet to be kept.

    Args:
        threshold (`float`, *optional*):
            Minimum score of a text. Defaults to 0.5, except for `by="posterior"`, whose values have no such middle: pass
            `threshold` or `keep_share`.
        keep_share (`float`, *optional*):
            Fraction of the texts to keep instead, in (0, 1]: for each source those with the highest scores in the whole
            data, including ties with the last one.
        best_per_image (`bool`, *optional*, defaults to `False`):
            Whether to keep only the best of the remaining texts of each image, the first one of ties. Images are
            identified by `image_id` within a shard.
        sources (`tuple[str, ...]`, *optional*, defaults to `("web", "synthetic")`):
            Sources to keep texts from: `"web"`, `"synthetic"` and `"human"`.
        by (`str`, *optional*, defaults to `"itm"`):
            The score: `"itm"`, the matching probability; `"itc"`, the cosine similarity; or `"posterior"`, both together: the
            log-odds of a match plus the cosine divided by `itm_temperature`.
        itm_temperature (`float`, *optional*):
            Temperature of the posterior. Defaults to that of the filter in a run, and to 0.07 for a table alone.

    Raises:
        ValueError: If a value is out of range.
    """

    threshold: float = None  # type: ignore[assignment]  # `None` is replaced by 0.5 below
    keep_share: float | None = None
    best_per_image: bool = False
    sources: tuple[str, ...] = ("web", "synthetic")
    by: Literal["itm", "itc", "posterior"] = "itm"
    itm_temperature: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))  # JSON and YAML have lists
        unknown = [source for source in self.sources if source not in SOURCES]
        if unknown or not self.sources:
            raise ValueError(f"sources={self.sources}, expected some of {', '.join(map(repr, SOURCES))}.")
        if self.by not in ("itm", "itc", "posterior"):
            raise ValueError(f"by={self.by!r}, expected 'itm', 'itc' or 'posterior'.")
        if self.by == "posterior" and self.threshold is None and self.keep_share is None:
            raise ValueError("by='posterior' needs a minimum score. Pass keep_share, such as 0.5, or a threshold.")
        if self.itm_temperature is not None and self.itm_temperature <= 0:
            raise ValueError(f"itm_temperature={self.itm_temperature}, expected more than 0.")
        if self.threshold is None:
            object.__setattr__(self, "threshold", _THRESHOLD)
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold={self.threshold} is not finite; pass a number such as 0.5.")
        if self.keep_share is not None and not 0 < self.keep_share <= 1:
            raise ValueError(f"keep_share={self.keep_share} is not a share of the texts; pass a value in (0, 1].")


def with_filter_temperature(rule: Rule, models: Mapping[str, Mapping[str, Any]]) -> Rule:
    """Returns a rule by the posterior with the temperature of the filter of a run, unless it has its own."""
    if rule.by != "posterior" or rule.itm_temperature is not None:
        return rule
    # Runs of earlier versions do not store it.
    return replace(rule, itm_temperature=models["filter"].get("itm_temperature", DEFAULT_TEMPERATURE))


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
    scores = rule_scores(table, rule)
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
        scores = rule_scores(table, rule)
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


def rule_scores(table: pa.Table, rule: Rule) -> np.ndarray:
    """Returns the scores that a rule compares, `(m,)` in float32; NaN for a text without a score."""
    if rule.by != "posterior":
        return _column(table, rule.by)
    probabilities = np.minimum(_column(table, "itm").astype(np.float64), _MAX_PROBABILITY)
    with np.errstate(divide="ignore"):  # a probability of 0 has the log-odds -inf
        log_odds = np.log(probabilities) - np.log1p(-probabilities)
    temperature = DEFAULT_TEMPERATURE if rule.itm_temperature is None else rule.itm_temperature
    return posterior_scores(log_odds, _column(table, "itc"), temperature).astype(np.float32)


def _column(table: pa.Table, name: str) -> np.ndarray:
    scores = table[name].cast(pa.float32()).to_numpy(zero_copy_only=False)
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


__all__ = ["Rule", "find_cutoffs", "keep_mask", "rule_scores", "with_filter_temperature"]
