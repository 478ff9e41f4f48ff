# SPDX-License-Identifier: BSD-3-Clause
"""Precision, recall and ROC AUC of a filter, against values computed by hand and a loop over pairs."""

import itertools

import numpy as np
import pytest

from blip_hf.evaluation.filtering import filter_metrics


def test_metrics_match_values_computed_by_hand():
    metrics = filter_metrics([0.9, 0.7, 0.6, 0.5, 0.4, 0.1], [1, 1, 0, 1, 1, 0])
    # Kept: the first four, three of them right. Four are right in total. Dropped: one of the two swapped.
    # Pairs in order: the right 0.9, 0.7, 0.5 and 0.4 are above 2, 2, 1 and 1 of the swapped 0.6 and 0.1: 6 of 8.
    assert metrics == {
        "num_texts": 6,
        "num_right": 4,
        "num_kept": 4,
        "precision": 3 / 4,
        "recall": 3 / 4,
        "noise_recall": 1 / 2,
        "roc_auc": 6 / 8,
    }


def test_a_tie_counts_one_half():
    # Pairs: 0.8 > 0.5, 0.8 > 0.2, 0.5 = 0.5, 0.5 > 0.2: (1 + 1 + 1/2 + 1) / 4.
    assert filter_metrics([0.8, 0.5, 0.5, 0.2], [1, 1, 0, 0])["roc_auc"] == 3.5 / 4
    assert filter_metrics([0.3] * 5, [1, 0, 0, 1, 0])["roc_auc"] == 0.5


def test_the_auc_is_the_share_of_ordered_pairs():
    generator = np.random.default_rng(0)
    scores, labels = generator.integers(0, 12, 80) / 8, generator.integers(0, 2, 80)
    pairs = list(itertools.product(scores[labels == 1], scores[labels == 0]))
    expected = sum((right > swapped) + (right == swapped) / 2 for right, swapped in pairs) / len(pairs)
    assert filter_metrics(scores, labels)["roc_auc"] == pytest.approx(expected, abs=1e-15)
    assert filter_metrics(-scores, labels)["roc_auc"] == pytest.approx(1 - expected, abs=1e-15)


def test_keep_mask_overrides_the_threshold():
    metrics = filter_metrics([0.9, 0.8, 0.2], [1, 0, 1], kept=[True, False, False])
    assert (metrics["precision"], metrics["recall"], metrics["noise_recall"]) == (1.0, 0.5, 1.0)
    assert metrics["roc_auc"] == 0.5


def test_a_metric_without_texts_is_none():
    metrics = filter_metrics([0.1, 0.2], [1, 1])
    assert (metrics["precision"], metrics["noise_recall"], metrics["roc_auc"]) == (None, None, None)
    assert metrics["recall"] == 0.0


@pytest.mark.parametrize(
    ("scores", "labels", "kept", "message"),
    [
        ([], [], None, "at least one text"),
        ([0.1, 0.2], [1], None, "same length"),
        ([0.1, 0.2], [1, 0], [True], "same length"),
        ([0.1, 0.2], [1, 2], None, "got 2"),
        ([0.1, float("nan")], [1, 0], None, "1 of 2 scores are NaN"),
        ([0.1, 0.2], [1, 0], [1, 0], "boolean"),
    ],
)
def test_invalid_arguments_raise(scores, labels, kept, message):
    with pytest.raises(ValueError, match=message):
        filter_metrics(scores, labels, kept=kept)
