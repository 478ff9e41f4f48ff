# SPDX-License-Identifier: BSD-3-Clause
"""Streaming statistics of scores and texts, in constant memory."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


_WORD = re.compile("\\w+(?:['\u2019-]\\w+)*")

MAX_DISTINCT_WORDS = 200_000
"""Number of frequent words that are kept once there are twice as many."""

# Longer texts are in the last bin of the histogram of lengths. BLIP reads 30 words.
_MAX_LENGTH = 60


@dataclass
class ScoreStatistics:
    """Histogram of scores with bins of equal width; the outer bins include all scores beyond.

    Example:
        >>> statistics = ScoreStatistics(0.0, 1.0, num_bins=4)
        >>> statistics.add(np.array([0.1, 0.5, 0.75, 1.0], dtype=np.float32))
        >>> statistics.counts.tolist(), statistics.kept_shares()
        ([1, 0, 1, 2], [1.0, 0.75, 0.75, 0.5, 0.0])
    """

    low: float
    high: float
    num_bins: int = 100

    def __post_init__(self) -> None:
        # In float32 like the scores, so that a score equal to an edge is in the bin that a threshold there keeps.
        self.edges = np.linspace(self.low, self.high, self.num_bins + 1).astype(np.float32)  # (bins + 1,)
        self.counts = np.zeros(self.num_bins, dtype=np.int64)  # (bins,)
        self.total = 0.0

    def add(self, scores: np.ndarray) -> None:
        """Adds float32 scores `(m,)`; NaN, a text without a score, is ignored."""
        scores = scores[~np.isnan(scores)]
        bins = np.searchsorted(self.edges, scores, side="right") - 1  # (m,)
        self.counts += np.bincount(bins.clip(0, self.num_bins - 1), minlength=self.num_bins)
        self.total += float(scores.sum(dtype=np.float64))

    def kept_shares(self) -> list[float]:
        """Returns the share of scores that a threshold at each edge keeps; it is 0 at the last edge."""
        kept = np.append(self.counts[::-1].cumsum()[::-1], 0)  # (bins + 1,)
        return (kept / max(1, kept[0])).tolist()

    def mean(self) -> float | None:
        """Mean of the scores."""
        num_scores = int(self.counts.sum())
        return self.total / num_scores if num_scores else None


@dataclass
class TextStatistics:
    """Lengths and words of texts, lower-cased and without punctuation.

    Example:
        >>> statistics = TextStatistics()
        >>> statistics.add(["A dog, a cat.", "a dog's bone"])
        >>> statistics.num_texts, statistics.num_words, statistics.words["a"], statistics.words["dog's"]
        (2, 7, 3, 1)
    """

    num_texts: int = 0
    num_words: int = 0
    words: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    is_exact: bool = True

    def add(self, texts: Iterable[str]) -> None:
        """Adds texts."""
        for text in texts:
            words = _WORD.findall(text.lower())
            self.num_texts += 1
            self.num_words += len(words)
            self.lengths[min(len(words), _MAX_LENGTH)] += 1
            self.words.update(words)
        self._drop_rare_words()

    def __add__(self, other: "TextStatistics") -> "TextStatistics":
        both = TextStatistics(
            self.num_texts + other.num_texts,
            self.num_words + other.num_words,
            self.words + other.words,
            self.lengths + other.lengths,
            self.is_exact and other.is_exact,
        )
        both._drop_rare_words()
        return both

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry of the report."""
        num_distinct = len(self.words)
        return {
            "num_texts": self.num_texts,
            "num_words": self.num_words,
            "mean_length": self.num_words / self.num_texts if self.num_texts else None,
            "num_distinct_words": num_distinct,
            "num_distinct_words_is_exact": self.is_exact,
            "type_token_ratio": num_distinct / self.num_words if self.num_words else None,
            "lengths": [self.lengths[length] for length in range(_MAX_LENGTH + 1)],
        }

    def _drop_rare_words(self) -> None:
        if len(self.words) > 2 * MAX_DISTINCT_WORDS:
            self.words = Counter(dict(self.words.most_common(MAX_DISTINCT_WORDS)))
            self.is_exact = False


def word_changes(
    before: TextStatistics, after: TextStatistics, num_words: int = 12
) -> dict[str, list[dict[str, Any]]]:
    """Returns the words whose frequency grew (`added`) and shrank (`dropped`) most, in occurrences per 1,000 words."""
    if not before.num_words or not after.num_words:
        return {"added": [], "dropped": []}
    changes: list[dict[str, Any]] = [
        {
            "word": word,
            "before": 1000 * before.words[word] / before.num_words,
            "after": 1000 * after.words[word] / after.num_words,
        }
        for word in before.words.keys() | after.words.keys()
    ]
    # The word breaks ties: a set has no order.
    changes.sort(key=lambda change: (change["before"] - change["after"], change["word"]))
    grown = [change for change in changes[:num_words] if change["after"] > change["before"]]
    shrunk = [change for change in reversed(changes[-num_words:]) if change["after"] < change["before"]]
    return {"added": grown, "dropped": shrunk}


__all__ = ["MAX_DISTINCT_WORDS", "ScoreStatistics", "TextStatistics", "word_changes"]
