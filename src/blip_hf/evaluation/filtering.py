# SPDX-License-Identifier: BSD-3-Clause
"""How well a filter tells texts that fit their image from texts that do not."""

from collections.abc import Sequence

import numpy as np


# The paper's filter drops a text whose matching head finds "not matched" the more probable of the two.
_EVEN_ODDS = 0.5


def filter_metrics(
    scores: np.ndarray | Sequence[float],
    labels: np.ndarray | Sequence[int],
    *,
    kept: np.ndarray | Sequence[bool] | None = None,
) -> dict[str, float | int | None]:
    """Precision and recall of what a filter keeps, and the ROC AUC of its scores, "right" being the positive class.

    The AUC is the probability that a right text scores above a swapped one, where a tie counts one half. It depends on
    the order of the scores alone, not on a threshold, and is exact.

    Args:
        scores (`numpy.ndarray` or sequence of `float`, of shape `(m,)`):
            The filter's score of each text, the higher the better.
        labels (`numpy.ndarray` or sequence of `int`, of shape `(m,)`):
            1 where the text fits its image, 0 where it was swapped.
        kept (`numpy.ndarray` or sequence of `bool`, of shape `(m,)`, *optional*):
            What the filter keeps. Defaults to `scores >= 0.5`, the paper's rule for matching probabilities.

    Returns:
        `dict[str, float | int | None]`: `num_texts`, `num_right` and `num_kept`; `precision`, the share of kept texts
        that are right; `recall`, the share of right texts that are kept; `noise_recall`, the share of swapped texts that
        are dropped; and `roc_auc`. A share of nothing is `None`, and so is the AUC of texts of one class.

    Raises:
        `ValueError`: if there is no text, lengths differ, a label is neither 0 nor 1, or a score is NaN.

    Example:
        >>> metrics = filter_metrics([0.9, 0.8, 0.6, 0.1], [1, 0, 1, 0])
        >>> metrics["precision"], metrics["recall"], metrics["roc_auc"]
        (0.6666666666666666, 1.0, 0.75)
    """
    scores = np.asarray(scores)  # (m,)
    is_right = _checked_labels(labels)  # (m,)
    kept = scores >= _EVEN_ODDS if kept is None else np.asarray(kept)  # (m,)
    if scores.ndim != 1 or not scores.size or not scores.shape == is_right.shape == kept.shape:
        raise ValueError(
            f"got scores of shape {scores.shape}, labels of {is_right.shape} and kept of {kept.shape}: each must be one"
            " row of the same length, with at least one text"
        )
    if kept.dtype != np.bool_:
        raise ValueError(f"kept must be boolean, got {kept.dtype}; pass scores >= threshold")
    if np.isnan(scores).any():
        raise ValueError(
            f"{np.isnan(scores).sum()} of {scores.size} scores are NaN, which has no rank; leave them out"
        )
    return {
        "num_texts": int(scores.size),
        "num_right": int(is_right.sum()),
        "num_kept": int(kept.sum()),
        "precision": _share(is_right, kept),
        "recall": _share(kept, is_right),
        "noise_recall": _share(~kept, ~is_right),
        "roc_auc": _roc_auc(scores, is_right),
    }


def _checked_labels(labels: np.ndarray | Sequence[int]) -> np.ndarray:
    labels = np.asarray(labels)
    outside = ~np.isin(labels, (0, 1))
    if outside.any():
        raise ValueError(f"labels must be 1 (right) or 0 (swapped), got {labels[outside][0]}")
    return labels.astype(bool)


def _share(is_counted: np.ndarray, among: np.ndarray) -> float | None:
    """Share of the texts in `among` that are counted."""
    return float(is_counted[among].mean()) if among.any() else None


def _roc_auc(scores: np.ndarray, is_right: np.ndarray) -> float | None:
    """Mann-Whitney: of all pairs of a right and a swapped text, the share that are in order."""
    _, level = np.unique(scores, return_inverse=True)  # (m,), rank of the score among the distinct ones
    num_levels = level.max() + 1
    num_right = np.bincount(level[is_right], minlength=num_levels)  # (levels,)
    num_swapped = np.bincount(level[~is_right], minlength=num_levels)  # (levels,)
    num_pairs = int(num_right.sum()) * int(num_swapped.sum())
    if not num_pairs:
        return None
    # Twice the pairs in order, so that ties stay whole numbers.
    twice_in_order = num_right * (2 * (num_swapped.cumsum() - num_swapped) + num_swapped)
    return int(twice_in_order.sum()) / (2 * num_pairs)


__all__ = ["filter_metrics"]
