# SPDX-License-Identifier: BSD-3-Clause
"""What a report counts while scores stream by: histograms and words, in memory that does not grow with the data."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


_WORD = re.compile("\\w+(?:['\u2019-]\\w+)*")

MAX_DISTINCT_WORDS = 200_000
"""Beyond twice as many distinct words, the rare ones are forgotten down to this many."""

# All longer texts count as this long in the histogram of lengths. BLIP reads 30 words.
_MAX_LENGTH = 60


@dataclass
class ScoreTally:
    """A histogram of scores, fine enough to read the kept share at any of its edges from.

    Args:
        low (`float`):
            Left edge of the first bin, which takes all lower scores too.
        high (`float`):
            Right edge of the last bin, which takes all higher scores too.
        num_bins (`int`, *optional*, defaults to 100):
            Number of bins of equal width.

    Example:
        >>> tally = ScoreTally(0.0, 1.0, num_bins=4)
        >>> tally.add(np.array([0.1, 0.5, 0.75, 1.0], dtype=np.float32))
        >>> tally.counts.tolist(), tally.kept_shares()
        ([1, 0, 1, 2], [1.0, 0.75, 0.75, 0.5, 0.0])
    """

    low: float
    high: float
    num_bins: int = 100

    def __post_init__(self) -> None:
        # In the scores' own precision, so that a score at an edge falls on the side a threshold there puts it.
        self.edges = np.linspace(self.low, self.high, self.num_bins + 1).astype(np.float32)  # (bins + 1,)
        self.counts = np.zeros(self.num_bins, dtype=np.int64)  # (bins,)
        self.total = 0.0

    def add(self, scores: np.ndarray) -> None:
        """Counts scores.

        Args:
            scores (`numpy.ndarray` of shape `(m,)`):
                In float32. NaN stands for a text without a score, which is not counted.
        """
        scores = scores[~np.isnan(scores)]
        bins = np.searchsorted(self.edges, scores, side="right") - 1  # (m,)
        self.counts += np.bincount(bins.clip(0, self.num_bins - 1), minlength=self.num_bins)
        self.total += float(scores.sum(dtype=np.float64))

    def kept_shares(self) -> list[float]:
        """Share of the scores that a threshold at each edge keeps; nothing is kept at the last one."""
        kept = np.append(self.counts[::-1].cumsum()[::-1], 0)  # (bins + 1,)
        return (kept / max(1, kept[0])).tolist()

    def mean(self) -> float | None:
        """Mean of the scores, `None` if there are none."""
        num_scores = int(self.counts.sum())
        return self.total / num_scores if num_scores else None


@dataclass
class TextTally:
    """Lengths and words of texts, lower-cased and without punctuation.

    Example:
        >>> tally = TextTally()
        >>> tally.add(["A dog, a cat.", "a dog's bone"])
        >>> tally.num_texts, tally.num_words, tally.words["a"], tally.words["dog's"]
        (2, 7, 3, 1)
    """

    num_texts: int = 0
    num_words: int = 0
    words: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    is_exact: bool = True

    def add(self, texts: Iterable[str]) -> None:
        """Counts texts.

        Args:
            texts (iterable of `str`):
                As they are.
        """
        for text in texts:
            words = _WORD.findall(text.lower())
            self.num_texts += 1
            self.num_words += len(words)
            self.lengths[min(len(words), _MAX_LENGTH)] += 1
            self.words.update(words)
        self._forget()

    def __add__(self, other: "TextTally") -> "TextTally":
        both = TextTally(
            self.num_texts + other.num_texts,
            self.num_words + other.num_words,
            self.words + other.words,
            self.lengths + other.lengths,
            self.is_exact and other.is_exact,
        )
        both._forget()
        return both

    def statistics(self) -> dict[str, Any]:
        """Lengths and vocabulary as the report has them."""
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

    def _forget(self) -> None:
        if len(self.words) > 2 * MAX_DISTINCT_WORDS:
            self.words = Counter(dict(self.words.most_common(MAX_DISTINCT_WORDS)))
            self.is_exact = False


def word_changes(before: TextTally, after: TextTally, num_words: int = 12) -> dict[str, list[dict[str, Any]]]:
    """The words whose share of all words has grown and shrunk the most.

    Args:
        before (`TextTally`):
            Texts before filtering.
        after (`TextTally`):
            Texts after it.
        num_words (`int`, *optional*, defaults to 12):
            How many of each.

    Returns:
        `dict[str, list]`: `added` and `dropped`, the greatest change first, with `word`, and its occurrences among 1,000
        words `before` and `after`.
    """
    if not before.num_words or not after.num_words:
        return {"added": [], "dropped": []}
    changes = [
        {
            "word": word,
            "before": 1000 * before.words[word] / before.num_words,
            "after": 1000 * after.words[word] / after.num_words,
        }
        for word in before.words.keys() | after.words.keys()
    ]
    # The word decides between equal changes: a set has no order of its own.
    changes.sort(key=lambda change: (change["before"] - change["after"], change["word"]))
    grown = [change for change in changes[:num_words] if change["after"] > change["before"]]
    shrunk = [change for change in reversed(changes[-num_words:]) if change["after"] < change["before"]]
    return {"added": grown, "dropped": shrunk}


__all__ = ["MAX_DISTINCT_WORDS", "ScoreTally", "TextTally", "word_changes"]
