# SPDX-License-Identifier: BSD-3-Clause
"""The scores that rank image-text pairs, from the ITM logits and the cosine of a pair.

`docs/posterior.md` derives the posterior. Imports nothing heavy, so that `--help` is quick.
"""

from typing import TYPE_CHECKING, Literal, TypeVar, get_args


if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Array = TypeVar("Array", Tensor, np.ndarray)

PairScore = Literal["itm", "paper", "posterior"]
PAIR_SCORE: PairScore = "paper"
"""The score that re-ranks by default, in evaluation and search."""


def pair_scores(itm_logits: "Tensor", cosines: "Tensor", score: PairScore, *, temperature: float) -> "Tensor":
    """Scores pairs. Scores of one query are comparable; those of different queries need not be.

    Args:
        itm_logits (`torch.Tensor` of shape `(..., 2)`):
            Logits of the ITM head, unmatched and matched.
        cosines (`torch.Tensor` of shape `(...)`):
            Cosines of the image and text features.
        score (`str`):
            - `"itm"`: log-odds of a match, without the cosine.
            - `"paper"`: logit of a match plus the cosine, as in salesforce/BLIP `train_retrieval.py`.
            - `"posterior"`: log-odds of a match plus the cosine divided by `temperature`.
        temperature (`float`):
            Temperature that the hard negatives of ITM were drawn at (`config.itm_temperature`). Only `"posterior"` reads it.

    Returns:
        `torch.Tensor` of shape `(...)`: the scores, fp32.

    Raises:
        ValueError: If the score is unknown.

    Example:
        >>> import torch
        >>> logits, cosines = torch.tensor([[0.0, 3.0], [-1.0, 2.5]]), torch.tensor([0.5, 0.25])
        >>> pair_scores(logits, cosines, "paper", temperature=0.05).tolist()
        [3.5, 2.75]
        >>> pair_scores(logits, cosines, "posterior", temperature=0.05).tolist()
        [13.0, 8.5]
    """
    check_score(score)
    matched = itm_logits[..., 1].float()
    if score == "paper":
        return matched + cosines
    log_odds = matched - itm_logits[..., 0].float()
    return log_odds if score == "itm" else posterior_scores(log_odds, cosines, temperature)


def posterior_scores(itm_log_odds: "Array", cosines: "Array", temperature: "float | Tensor") -> "Array":
    """Log-probability of each candidate given its query, up to a constant of the query."""
    return itm_log_odds + cosines / temperature


def check_score(score: PairScore) -> None:
    """Raises a ValueError for an unknown score, so that commands can check it before a long run."""
    if score not in get_args(PairScore):
        raise ValueError(f"score={score!r} is unknown; pass one of {', '.join(map(repr, get_args(PairScore)))}.")


__all__ = ["PAIR_SCORE", "PairScore", "check_score", "pair_scores", "posterior_scores"]
