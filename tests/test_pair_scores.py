# SPDX-License-Identifier: BSD-3-Clause
"""The scores of pairs against a toy whose posterior is known, and their properties.

The toy has a joint distribution of four images and five texts, cosines that fit it badly, and the head that training converges
to: the Bayes-optimal classifier of true pairs against hard negatives.
"""

import math

import pytest
import torch
from torch.testing import assert_close

from blip_hf.pair_scores import pair_scores


TEMPERATURE = 0.2


def toy(seed=0, num_images=4, num_texts=5):
    """The joint distribution `(n, m)` and cosines `(n, m)`, fp64."""
    generator = torch.Generator().manual_seed(seed)
    joint = torch.rand(num_images, num_texts, generator=generator, dtype=torch.float64) ** 3
    cosines = 2 * torch.rand(num_images, num_texts, generator=generator, dtype=torch.float64) - 1
    return joint / joint.sum(), cosines


def bayes_logits(positives, negatives):
    """ITM logits `(n, m, 2)` of the Bayes-optimal head for the densities of both classes; any shift of both is optimal."""
    logits = torch.stack([negatives.log(), positives.log()], dim=-1)
    return logits + torch.arange(logits[..., 0].numel(), dtype=torch.float64).sin().view(logits.shape[:2])[..., None]


def without_row_constant(scores):
    return scores - scores.mean(dim=1, keepdim=True)


def test_posterior_is_the_log_probability_of_the_text_up_to_a_constant_of_the_image():
    joint, cosines = toy()
    text_given_image = joint / joint.sum(dim=1, keepdim=True)
    # A batch with each text once: hard negatives follow the softmax of the cosines.
    logits = bayes_logits(text_given_image, (cosines / TEMPERATURE).softmax(dim=1))
    scores = pair_scores(logits, cosines, "posterior", temperature=TEMPERATURE).double()
    assert_close(
        without_row_constant(scores), without_row_constant(text_given_image.log()), atol=1e-5, rtol=0
    )  # fp32 scores
    assert torch.equal(scores.argsort(dim=1), text_given_image.argsort(dim=1))


@pytest.mark.parametrize("score", ["paper", "itm"])
def test_other_scores_rank_the_toy_wrong(score):
    joint, cosines = toy()
    text_given_image = joint / joint.sum(dim=1, keepdim=True)
    logits = bayes_logits(text_given_image, (cosines / TEMPERATURE).softmax(dim=1))
    best = pair_scores(logits, cosines, score, temperature=TEMPERATURE).argmax(dim=1)
    assert not torch.equal(best, text_given_image.argmax(dim=1))


def test_posterior_finds_the_partner_if_some_texts_are_more_frequent():
    joint, cosines = toy()
    images, texts = joint.sum(dim=1, keepdim=True), joint.sum(dim=0)
    # Batches hold frequent texts more often, and so do hard negatives.
    proposal = texts * (cosines / TEMPERATURE).exp()
    logits = bayes_logits(joint / images, proposal / proposal.sum(dim=1, keepdim=True))
    scores = pair_scores(logits, cosines, "posterior", temperature=TEMPERATURE).double()
    # If one of the texts belongs to the image and the others were drawn at random, this is its log-odds.
    partner = (joint / images / texts).log()
    assert_close(without_row_constant(scores), without_row_constant(partner), atol=1e-5, rtol=0)


def test_negatives_of_both_directions_need_equal_partition_sums():
    joint, cosines = toy(num_images=4, num_texts=4)
    images, texts = joint.sum(dim=1, keepdim=True), joint.sum(dim=0)
    partner = (joint / images / texts).log()

    def error(cosines):
        pairs = images * texts * (cosines / TEMPERATURE).exp()
        negatives = images * pairs / pairs.sum(dim=1, keepdim=True) + texts * pairs / pairs.sum(dim=0)
        scores = pair_scores(bayes_logits(joint, negatives), cosines, "posterior", temperature=TEMPERATURE).double()
        return (without_row_constant(scores) - without_row_constant(partner)).abs().max().item()

    assert error(cosines) > 0.1
    # Sinkhorn's iteration makes the sums of all rows, and of all columns, equal.
    logits = cosines / TEMPERATURE
    for _ in range(500):
        logits = logits - (texts * logits.exp()).sum(dim=1, keepdim=True).log()
        logits = logits - (images * logits.exp()).sum(dim=0).log()
    assert error(logits * TEMPERATURE) < 1e-4


def test_posterior_is_itm_alone_if_the_temperature_is_infinite():
    logits, cosines = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)), torch.rand(3, 4)
    posterior = pair_scores(logits, cosines, "posterior", temperature=math.inf)
    assert torch.equal(posterior, pair_scores(logits, cosines, "itm", temperature=0.07))


@pytest.mark.parametrize("score", ["itm", "posterior"])
def test_scores_do_not_change_if_both_logits_shift(score):
    joint, cosines = toy()
    logits = joint.log()[..., None] * torch.tensor([0.5, 1.0])
    shift = torch.randn(4, 5, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 100
    expected = pair_scores(logits, cosines, score, temperature=0.05)
    assert_close(pair_scores(logits + shift, cosines, score, temperature=0.05), expected, atol=1e-4, rtol=0)


def test_order_does_not_change_if_the_cosines_of_an_image_shift():
    joint, cosines = toy()
    logits = torch.stack([torch.zeros_like(joint), joint.log()], dim=-1)
    scores = pair_scores(logits, cosines, "posterior", temperature=0.05)
    shifted = pair_scores(
        logits, cosines + torch.tensor([[0.5], [-0.25], [0.0], [1.0]]), "posterior", temperature=0.05
    )
    assert torch.equal(scores.argsort(dim=1), shifted.argsort(dim=1))


def test_half_precision_logits_are_subtracted_in_fp32():
    logits = torch.tensor([[-3.015625, 3.0]], dtype=torch.bfloat16)
    scores = pair_scores(logits, torch.tensor([0.1]), "posterior", temperature=0.05)
    assert_close(scores, torch.tensor([8.015625]))


def test_unknown_score_is_refused():
    with pytest.raises(ValueError, match="score='cosine' is unknown; pass one of 'itm', 'paper', 'posterior'"):
        pair_scores(torch.zeros(1, 2), torch.zeros(1), "cosine", temperature=0.07)
