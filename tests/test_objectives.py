# SPDX-License-Identifier: BSD-3-Clause
"""The objectives against plain fp64 loops, closed forms and edge cases."""

import math

import pytest
import torch
from torch.testing import assert_close

from blip_hf.objectives import (
    captioning_loss,
    contrastive_loss,
    contrastive_targets,
    matching_loss,
    matching_pairs,
    sample_hard_negatives,
)


def softmax_row(row):
    exps = [math.exp(value - max(row)) for value in row]
    return [value / sum(exps) for value in exps]


def targets_by_loops(teacher_logits, positives, alpha):
    rows = []
    for logits, is_positive in zip(teacher_logits.tolist(), positives.tolist(), strict=True):
        share = 1 / sum(is_positive)
        beliefs = softmax_row(logits)
        rows.append([alpha * p + (1 - alpha) * share * y for p, y in zip(beliefs, is_positive, strict=True)])
    return torch.tensor(rows, dtype=torch.float64)


def contrastive_loss_by_loops(logits, targets):
    total = 0.0
    for row, weights in zip(logits.tolist(), targets.tolist(), strict=True):
        total -= sum(w * math.log(p) for w, p in zip(weights, softmax_row(row), strict=True))
    return torch.tensor(total / len(logits), dtype=torch.float64)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_contrastive_targets_and_loss_equal_plain_loops(alpha):
    logits, teacher_logits = torch.randn(2, 4, 9, dtype=torch.float64) * 3
    positives = matching_pairs(torch.tensor([5, 6, 5, -100]), torch.tensor([5, 6, 5, -100, 6, 6, 8, -100, 5]))
    targets = contrastive_targets(teacher_logits, positives, alpha)
    expected = targets_by_loops(teacher_logits, positives, alpha)
    assert_close(targets.double(), expected, rtol=1e-6, atol=1e-7)
    expected_loss = contrastive_loss_by_loops(logits, expected)
    assert_close(contrastive_loss(logits, targets).double(), expected_loss, rtol=1e-6, atol=1e-7)


def test_without_teacher_the_contrastive_loss_is_infonce():
    logits, teacher_logits = torch.randn(2, 5, 8)
    targets = contrastive_targets(teacher_logits, torch.eye(5, 8, dtype=torch.bool), alpha=0.0)
    assert_close(contrastive_loss(logits, targets), torch.nn.functional.cross_entropy(logits, torch.arange(5)))


@pytest.mark.parametrize("num_keys", [4, 57675])
def test_equal_features_have_a_loss_of_log_num_keys(num_keys):
    logits = torch.full((4, num_keys), 3.7)
    targets = contrastive_targets(torch.randn(4, num_keys), torch.eye(4, num_keys, dtype=torch.bool), alpha=0.4)
    assert_close(contrastive_loss(logits, targets), torch.tensor(math.log(num_keys)), rtol=1e-5, atol=1e-5)


def test_alpha_may_be_a_tensor():
    teacher_logits, positives = torch.randn(3, 5), torch.eye(3, 5, dtype=torch.bool)
    from_tensor = contrastive_targets(teacher_logits, positives, torch.tensor(0.3))
    assert_close(from_tensor, contrastive_targets(teacher_logits, positives, 0.3))


def test_targets_sum_to_one_and_positives_share_their_mass():
    positives = matching_pairs(torch.tensor([1, 2, 1]), torch.tensor([1, 2, 1, 1, 9]))
    targets = contrastive_targets(torch.randn(3, 5), positives, alpha=0.4)
    assert_close(targets.sum(dim=-1), torch.ones(3))
    hard = contrastive_targets(torch.randn(3, 5), positives, alpha=0.0)
    third = 1 / 3  # image 1 is in the batch twice and in the queue once
    assert_close(hard, torch.tensor([[third, 0, third, third, 0], [0, 1, 0, 0, 0], [third, 0, third, third, 0]]))


def test_rows_without_image_id_match_only_themselves():
    unknown = torch.full((3,), -100)
    assert_close(matching_pairs(unknown, torch.full((5,), -100)), torch.eye(3, 5, dtype=torch.bool))


def test_gradient_of_the_contrastive_loss_is_softmax_minus_targets():
    logits = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(3, 6, dtype=torch.float64).softmax(dim=-1)
    contrastive_loss(logits, targets).backward()
    assert_close(logits.grad, (logits.detach().softmax(dim=-1) - targets) / 3, rtol=1e-6, atol=1e-7)


def test_hard_negatives_are_never_positives():
    image_ids = torch.tensor([1, 1, 2, -100, 3, -100])
    positives = matching_pairs(image_ids, image_ids)
    for logits in (torch.zeros(6, 6), 1e4 * torch.eye(6), 1e4 * positives.float()):
        for _ in range(50):
            negatives, has_negative = sample_hard_negatives(logits, positives)
            assert has_negative.all()
            assert not positives.gather(1, negatives[:, None]).any()


def test_hard_negatives_are_drawn_in_proportion_to_their_probability():
    logits = torch.tensor([[5.0, 0.0, 1.0, 2.0]]).expand(20_000, 4)
    positives = torch.tensor([[True, False, False, False]]).expand(20_000, 4)
    negatives, _ = sample_hard_negatives(logits, positives)
    weights = logits[0].softmax(dim=-1) + 1e-4
    weights[0] = 0
    frequencies = torch.bincount(negatives, minlength=4) / len(negatives)
    # Three standard deviations of a frequency are below 3 * sqrt(0.25 / 20,000) = 0.011.
    assert_close(frequencies, weights / weights.sum(), atol=0.011, rtol=0)


def test_hard_negatives_repeat_with_a_generator():
    logits, positives = torch.randn(16, 16), torch.eye(16, dtype=torch.bool)

    def draw(seed):
        return sample_hard_negatives(logits, positives, torch.Generator().manual_seed(seed))[0]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_rows_without_a_negative_are_flagged():
    same_image = torch.full((4,), 7)
    _, has_negative = sample_hard_negatives(torch.randn(4, 4), matching_pairs(same_image, same_image))
    assert not has_negative.any()
    ids = torch.tensor([7, 7, 8])
    _, has_negative = sample_hard_negatives(torch.randn(3, 3), matching_pairs(ids, ids))
    assert has_negative.all()
    _, has_negative = sample_hard_negatives(torch.randn(1, 1), torch.ones(1, 1, dtype=torch.bool))
    assert has_negative.tolist() == [False]


@pytest.mark.parametrize("extreme", [65504.0, float("inf"), float("nan"), -65504.0, float("-inf")])
def test_extreme_half_precision_logits_still_draw_negatives(extreme):
    logits = torch.full((4, 4), -65504.0, dtype=torch.float16).fill_diagonal_(extreme)
    logits[0] = extreme
    positives = torch.eye(4, dtype=torch.bool)
    negatives, has_negative = sample_hard_negatives(logits, positives)
    assert has_negative.all()
    assert (negatives != torch.arange(4)).all()


def test_drawing_negatives_has_no_gradient():
    logits = torch.randn(3, 3, requires_grad=True)
    negatives, has_negative = sample_hard_negatives(logits, torch.eye(3, dtype=torch.bool))
    assert not negatives.requires_grad
    assert not has_negative.requires_grad


def test_constant_itm_prediction_has_the_entropy_of_one_third():
    # Constant logits whose softmax is (2/3, 1/3), a third of the pairs matching: -(1/3 ln 1/3 + 2/3 ln 2/3) = 0.6365.
    logits = torch.tensor([2 / 3, 1 / 3]).log().expand(6, 2)
    assert_close(matching_loss(logits, torch.tensor([1, 1, 0, 0, 0, 0])), torch.tensor(0.6365), atol=1e-4, rtol=0)


def test_invalid_pairs_do_not_affect_value_or_gradient():
    logits = torch.randn(6, 2, requires_grad=True)
    labels = torch.tensor([1, 0, 1, 0, 0, 0])
    valid = torch.tensor([True, False, True, True, False, True])
    loss = matching_loss(logits, labels, valid)
    assert_close(loss, matching_loss(logits[valid], labels[valid]))
    assert_close(matching_loss(logits, labels, torch.ones(6, dtype=torch.bool)), matching_loss(logits, labels))
    loss.backward()
    assert (logits.grad.abs().sum(dim=-1) > 0).tolist() == valid.tolist()


def captioning_sums_by_loops(logits, targets, smoothing):
    """One sum per row: `(1 - smoothing)` of the target's loss and `smoothing` of the mean over the vocabulary."""
    sums = []
    for row, row_targets in zip(logits.tolist(), targets.tolist(), strict=True):
        total = 0.0
        for scores, target in zip(row, row_targets, strict=True):
            if target == -100:
                continue
            losses = [-math.log(p) for p in softmax_row(scores)]
            total += (1 - smoothing) * losses[target] + smoothing * sum(losses) / len(losses)
        sums.append(total)
    return torch.tensor(sums, dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_captioning_loss_equals_plain_loops(smoothing):
    logits = torch.randn(3, 4, 7, dtype=torch.float64) * 2
    targets = torch.tensor([[1, 2, 3, 4], [5, 6, -100, -100], [-100, -100, 2, 0]])  # 4 + 2 + 2 = 8 labelled
    sums = captioning_sums_by_loops(logits, targets, smoothing)

    def loss(**kwargs):
        return captioning_loss(logits, targets, label_smoothing=smoothing, **kwargs).double()

    tolerance = {"rtol": 1e-6, "atol": 1e-6}
    assert_close(loss(reduction="none"), sums, **tolerance)
    assert_close(loss(reduction="sum"), sums.sum(), **tolerance)
    assert_close(loss(), sums.sum() / 8, **tolerance)
    assert_close(loss(num_items=20), sums.sum() / 20, **tolerance)
    assert_close(loss(num_items=torch.tensor(20)), sums.sum() / 20, **tolerance)


def test_unknown_reduction_raises():
    with pytest.raises(ValueError, match="reduction is 'median', expected 'mean', 'sum' or 'none'"):
        captioning_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.long), reduction="median")
