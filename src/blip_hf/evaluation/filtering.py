# SPDX-License-Identifier: BSD-3-Clause
"""Precision, recall and ROC AUC of a filter that drops mismatched texts."""

from collections.abc import Sequence

import numpy as np


# The paper's filter keeps a text if its ITM probability is at least one half.
_EVEN_ODDS = 0.5


def filter_metrics(
    scores: np.ndarray | Sequence[float],
    labels: np.ndarray | Sequence[int],
    *,
    kept: np.ndarray | Sequence[bool] | None = None,
) -> dict[str, float | int | None]:
    """Measures how well a filter separates matching texts (the positive class, label 1) from swapped ones (label 0).

    `kept` defaults to `scores >= 0.5`, the paper's rule for ITM probabilities.

    Returns:
        `dict[str, float | int | None]`: `num_texts`, `num_right` and `num_kept`; `precision` and `recall` of the kept
        texts; `noise_recall`, the fraction of swapped texts that are dropped; and `roc_auc`, which is exact and counts a
        tie as one half. A metric without texts to compute it from is `None`.

    Raises:
        ValueError: If there are no texts, lengths differ, a label is neither 0 nor 1, or a score is NaN.

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
            f"Got scores of shape {scores.shape}, labels of shape {is_right.shape} and kept of shape {kept.shape}. Pass"
            " one-dimensional arrays of the same length, with at least one text."
        )
    if kept.dtype != np.bool_:
        raise ValueError(f"kept has dtype {kept.dtype}. Pass a boolean array, such as scores >= threshold.")
    if np.isnan(scores).any():
        raise ValueError(f"{np.isnan(scores).sum()} of {scores.size} scores are NaN. Leave these texts out.")
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
        raise ValueError(f"labels must be 1 (matching) or 0 (swapped), got {labels[outside][0]}.")
    return labels.astype(bool)


def _share(is_counted: np.ndarray, among: np.ndarray) -> float | None:
    """Returns the fraction of the texts in `among` that are counted, `None` if `among` is empty."""
    return float(is_counted[among].mean()) if among.any() else None


def _roc_auc(scores: np.ndarray, is_right: np.ndarray) -> float | None:
    """Returns the fraction of (right, swapped) pairs in the right order: the Mann-Whitney statistic."""
    _, level = np.unique(scores, return_inverse=True)  # (m,), rank among the distinct scores
    num_levels = level.max() + 1
    num_right = np.bincount(level[is_right], minlength=num_levels)  # (levels,)
    num_swapped = np.bincount(level[~is_right], minlength=num_levels)  # (levels,)
    num_pairs = int(num_right.sum()) * int(num_swapped.sum())
    if not num_pairs:
        return None
    # Counts each pair twice, so that ties stay integers.
    twice_in_order = num_right * (2 * (num_swapped.cumsum() - num_swapped) + num_swapped)
    return int(twice_in_order.sum()) / (2 * num_pairs)


__all__ = ["filter_metrics"]
