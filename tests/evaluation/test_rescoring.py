# SPDX-License-Identifier: BSD-3-Clause
"""Metrics of other scores of the same candidates, and the fitted temperature."""

import pytest
import torch

from blip_hf.evaluation.rescoring import TEMPERATURE_RANGE, JudgedCandidates, fit_temperature
from blip_hf.evaluation.two_stage import Candidates


NUM_QUERIES, K = 4_000, 8


def draw_judged(temperature, scale=1.0, seed=0, num_queries=NUM_QUERIES):
    """Candidates whose right one is drawn from the posterior of `temperature`; the model's log-odds are over-confident."""
    generator = torch.Generator().manual_seed(seed)
    log_odds = torch.randn(num_queries, K, generator=generator)
    cosines = 0.1 * torch.randn(num_queries, K, generator=generator)
    right = (log_odds + cosines / temperature).softmax(dim=1).multinomial(1, generator=generator)
    is_right = torch.zeros(num_queries, K, dtype=torch.bool).scatter_(1, right, True)
    logits = scale * torch.stack([torch.zeros_like(log_odds), log_odds], dim=-1)
    index = torch.arange(K).expand(num_queries, K)
    return JudgedCandidates(
        Candidates(index, log_odds, logits, scale * cosines), is_right, torch.full((num_queries,), 99)
    )


@pytest.mark.parametrize("temperature", [0.04, 0.07, 0.3])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_fit_finds_the_temperature_of_the_data(temperature, scale):
    fitted = fit_temperature([draw_judged(temperature, scale, seed=seed) for seed in (0, 1)])
    assert fitted == pytest.approx(temperature, rel=0.15)


def test_fit_is_the_best_temperature_on_its_own_data():
    judged = draw_judged(0.05)
    recall = {
        value: (judged.ranks("posterior", temperature=value) == 0).float().mean().item()
        for value in (fit_temperature([judged]), 0.01, 1.0)
    }
    assert max(recall, key=recall.get) == fit_temperature([judged])


def test_fit_stays_in_its_range_if_the_cosines_tell_nothing():
    judged = draw_judged(1e6, num_queries=50)
    low, high = TEMPERATURE_RANGE
    assert low <= fit_temperature([judged]) <= high


def test_queries_without_a_right_or_a_wrong_candidate_are_left_out():
    judged, without = draw_judged(0.07, num_queries=200), draw_judged(0.07, num_queries=10)
    without.is_right[:5] = False
    without.is_right[5:] = True
    assert fit_temperature([judged, without]) == fit_temperature([judged])
    with pytest.raises(ValueError, match="no query has both a right and a wrong candidate"):
        fit_temperature([without])


def test_fit_works_without_gradients_enabled():
    judged = draw_judged(0.07, num_queries=200)
    expected = fit_temperature([judged])
    with torch.no_grad():
        assert fit_temperature([judged]) == expected


def test_ranks_count_wrong_candidates_and_items_outside():
    logits = torch.tensor([[[0.0, 1.0], [0.0, 0.5]], [[0.0, 1.0], [0.0, 0.5]]])
    candidates = Candidates(torch.tensor([[0, 1], [0, 1]]), logits[..., 1], logits, torch.tensor([[0.0, 0.1]] * 2))
    relevance = torch.tensor([[False, True, False], [False, False, True]])
    judged = JudgedCandidates.of(candidates, relevance)
    assert judged.ranks("itm", temperature=0.1).tolist() == [1, 2]
    assert judged.ranks("posterior", temperature=0.1).tolist() == [0, 2]
