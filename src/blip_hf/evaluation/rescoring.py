# SPDX-License-Identifier: BSD-3-Clause
"""Ranks the candidates of an evaluation by other scores, and fits the temperature of the posterior, without the model.

Letters: `q` queries, `k` candidates per query.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..configuration_blip import DEFAULT_TEMPERATURE
from ..pair_scores import PairScore, pair_scores, posterior_scores
from .recall import listed_ranks
from .two_stage import Candidates


# Range of the fitted temperature. Above it cosines hardly count, below it nothing else does.
TEMPERATURE_RANGE = (0.001, 10.0)


@dataclass(frozen=True)
class JudgedCandidates:
    """The candidates of each query, and which of them are right.

    Args:
        candidates (`Candidates`):
            ITM logits and cosines of `k` candidates per query.
        is_right (`torch.Tensor` of shape `(q, k)`):
            Boolean mask of the right candidates.
        num_wrong (`torch.Tensor` of shape `(q,)`):
            Number of wrong items in the whole set.
    """

    candidates: Candidates
    is_right: Tensor
    num_wrong: Tensor

    @classmethod
    def of(cls, candidates: Candidates, relevance: Tensor) -> "JudgedCandidates":
        """Takes the relevance of all items, `(q, c)`."""
        num_wrong = relevance.shape[1] - relevance.sum(dim=1)
        return cls(candidates, relevance.gather(1, candidates.index), num_wrong)

    def scores(self, score: PairScore, *, temperature: float) -> Tensor:
        """Scores of the candidates, `(q, k)`, as in [`~blip_hf.pair_scores.pair_scores`]."""
        return pair_scores(self.candidates.itm_logits, self.candidates.cosines, score, temperature=temperature)

    def ranks(self, score: PairScore, *, temperature: float) -> Tensor:
        """Rank from 0 of the first right candidate of each query, `(q,)`."""
        return listed_ranks(self.scores(score, temperature=temperature), self.is_right, self.num_wrong)


def fit_temperature(directions: Iterable[JudgedCandidates]) -> float:
    """Returns the temperature of the posterior score under which the right candidates are most probable.

    Fits `softmax(a * (log_odds + cosine / T))` over the candidates of each query to the right ones, by maximum likelihood over
    the queries of all directions. The scale `a` absorbs the over-confidence of the model, which changes no order; without it,
    the fit makes `T` too large.

    Args:
        directions (iterable of `JudgedCandidates`):
            The candidates, of both directions for retrieval.

    Returns:
        `float`: the temperature, within `TEMPERATURE_RANGE`.

    Raises:
        ValueError: If no query has both a right and a wrong candidate.
    """
    parts = [_with_both_kinds(own) for own in directions]
    if not sum(len(is_right) for *_, is_right in parts):
        raise ValueError(
            "The temperature cannot be fitted: no query has both a right and a wrong candidate. Pass more pairs, or a"
            " larger number of candidates."
        )
    # Logarithms keep both above 0.
    parameters = torch.tensor([0.0, math.log(DEFAULT_TEMPERATURE)], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def loss_with_gradient() -> Tensor:
        optimizer.zero_grad()
        loss = _negative_log_likelihood(parts, *parameters.exp())
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(loss_with_gradient)
    low, high = TEMPERATURE_RANGE
    return round(min(max(parameters[1].exp().item(), low), high), 4)


def _with_both_kinds(judged: JudgedCandidates) -> tuple[Tensor, Tensor, Tensor]:
    """Log-odds of ITM, cosines and relevance, in fp64, of the queries with right and wrong candidates."""
    num_right = judged.is_right.sum(dim=1)
    has_both = (num_right > 0) & (num_right < judged.is_right.shape[1])
    log_odds = judged.scores("itm", temperature=1.0)[has_both].double()
    return log_odds, judged.candidates.cosines[has_both].double(), judged.is_right[has_both]


def _negative_log_likelihood(
    parts: Sequence[tuple[Tensor, Tensor, Tensor]], scale: Tensor, temperature: Tensor
) -> Tensor:
    """Mean over all queries of the negative log-probability of their right candidates."""
    losses = []
    for log_odds, cosines, is_right in parts:
        log_probabilities = (scale * posterior_scores(log_odds, cosines, temperature)).log_softmax(dim=1)  # (q, k)
        losses.append(-(log_probabilities * is_right).sum(dim=1) / is_right.sum(dim=1))
    return torch.cat(losses).mean()


__all__ = ["TEMPERATURE_RANGE", "JudgedCandidates", "fit_temperature"]
