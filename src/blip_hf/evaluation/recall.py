# SPDX-License-Identifier: BSD-3-Clause
"""Recall at k of image-text retrieval in both directions, and the exact recall of a random ranking.

Letters: `n` images, `m` texts, `q` queries, `c` candidates per query.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


# Rows are ranked in blocks of about this many scores, which keeps temporary tensors small.
_BLOCK_ELEMENTS = 2**18


def relevance_matrix(text_to_image: Tensor | np.ndarray | Sequence[int], num_images: int) -> Tensor:
    """Returns a boolean matrix `(n, m)` that is true where `text_to_image` assigns the text to the image.

    Raises:
        ValueError: If `text_to_image` is not one row of integers in `[0, num_images)`.

    Example:
        >>> relevance_matrix([0, 0, 1], num_images=2).int()
        tensor([[1, 1, 0],
                [0, 0, 1]], dtype=torch.int32)
    """
    index = torch.as_tensor(text_to_image)
    if index.ndim != 1 or index.is_floating_point() or index.dtype == torch.bool:
        raise ValueError(
            f"text_to_image must be one row of integers, got {index.dtype} of shape {tuple(index.shape)}."
        )
    outside = (index < 0) | (index >= num_images)
    if outside.any():
        raise ValueError(f"text_to_image must lie in [0, {num_images}), got {index[outside][0].item()}.")
    return torch.arange(num_images, device=index.device)[:, None] == index  # (n, m)


def retrieval_recalls(
    scores: Tensor | np.ndarray,
    text_to_image: Tensor | np.ndarray | Sequence[int] | None = None,
    *,
    relevance: Tensor | np.ndarray | None = None,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Computes the fraction of queries with a relevant candidate among their `k` best, from images to texts and back.

    A query counts once, even if several of its candidates are relevant. A relevant candidate ranks below all irrelevant
    ones with the same score, so constant scores give a recall of 0.

    Args:
        scores (`torch.Tensor` or `numpy.ndarray` of shape `(n, m)`):
            Floating-point scores of all images with all texts; higher is better. Use `-inf` for pairs without a score.
        text_to_image (`torch.Tensor`, `numpy.ndarray` or sequence of `int`, of shape `(m,)`, *optional*):
            Index of the image of each text. Several texts may share one.
        relevance (`torch.Tensor` or `numpy.ndarray` of shape `(n, m)`, *optional*):
            Boolean. Replaces `text_to_image` if a text describes several images.
        ks (sequence of `int`, *optional*, defaults to `(1, 5, 10)`):
            Numbers of best candidates.

    Returns:
        `dict[str, float]`: `image_to_text_r@{k}` and `text_to_image_r@{k}` for each `k`, in [0, 1], and their mean
        `r_mean`.

    Raises:
        ValueError: If both or neither of `text_to_image` and `relevance` are given, shapes differ, a score is NaN, a
            query has no relevant candidate, or a `k` is below one.

    Example:
        >>> scores = torch.tensor([[0.9, 0.4, 0.1], [0.8, 0.3, 0.7]])
        >>> recalls = retrieval_recalls(scores, text_to_image=[0, 0, 1], ks=(1,))
        >>> recalls["image_to_text_r@1"], recalls["text_to_image_r@1"]
        (0.5, 1.0)
    """
    _check_ks(ks)
    scores = _checked_scores(scores)
    if text_to_image is not None and relevance is None:
        relevance = relevance_matrix(text_to_image, scores.shape[0])
    elif relevance is None or text_to_image is not None:
        raise ValueError("Got both or neither of text_to_image and relevance. Pass exactly one.")
    relevance = _checked_relevance(relevance).to(scores.device)
    if relevance.shape != scores.shape:
        raise ValueError(
            f"scores have shape {tuple(scores.shape)} (images, texts), but the relevance has shape"
            f" {tuple(relevance.shape)}. The shapes must be equal."
        )
    ranks = {"image_to_text": best_ranks(scores, relevance), "text_to_image": best_ranks(scores.T, relevance.T)}
    return _report({name: _recalls(rank, ks) for name, rank in ranks.items()})


def chance_recalls(relevance: Tensor | np.ndarray, *, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Returns the expected `retrieval_recalls` of a random ranking, from the relevance `(n, m)`.

    If `r` of `c` candidates are relevant, the `k` best contain one with probability `1 - C(c - r, k) / C(c, k)`.

    Raises:
        ValueError: As `retrieval_recalls`.

    Example:
        >>> chance_recalls(torch.eye(4, dtype=torch.bool), ks=(1, 2))["text_to_image_r@2"]
        0.5
    """
    _check_ks(ks)
    relevance = _checked_relevance(relevance)
    directions = {"image_to_text": relevance, "text_to_image": relevance.T}
    return _report({name: {k: _chance(rows, k) for k in ks} for name, rows in directions.items()})


def rank_metrics(ranks: Mapping[str, Tensor], *, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Returns recalls, their means and median ranks (from 1) for the ranks `(q,)` (from 0) of each direction.

    Example:
        >>> rank_metrics({"text_to_image": torch.tensor([0, 4, 1, 0])}, ks=(1, 2))
        {'text_to_image_r@1': 0.5, 'text_to_image_r@2': 0.75, 'r_mean': 0.625, 'text_to_image_r_mean': 0.625, 'text_to_image_median_rank': 1.5}
    """
    _check_ks(ks)
    recalls = {direction: _recalls(rank, ks) for direction, rank in ranks.items()}
    metrics = _report(recalls)
    for direction, rank in ranks.items():
        metrics[f"{direction}_r_mean"] = math.fsum(recalls[direction].values()) / len(recalls[direction])
        metrics[f"{direction}_median_rank"] = float(np.median(rank.cpu().numpy())) + 1
    return metrics


def best_ranks(scores: Tensor, relevance: Tensor) -> Tensor:
    """Returns the rank from 0 of each query's best relevant candidate `(q,)`, for scores and relevance `(q, c)`.

    Irrelevant candidates with the same score rank first. Raises a ValueError if a score is NaN.
    """
    rows = max(1, _BLOCK_ELEMENTS // scores.shape[1])
    # Comparisons with NaN are false, so a NaN would rank first.
    num_nan = sum(block.isnan().sum().item() for block in scores.split(rows))
    if num_nan:
        raise ValueError(
            f"{num_nan} of {scores.numel()} scores are NaN. If they come from a model, its training diverged or its dtype"
            " overflows: try float32. Use -inf for pairs without a score."
        )
    ranks = []
    for block, relevant in zip(scores.split(rows), relevance.split(rows), strict=True):
        best = block.masked_fill(~relevant, -math.inf).amax(dim=1, keepdim=True)  # (q, 1)
        ranks.append(((block >= best) & ~relevant).sum(dim=1))  # (q,)
    return torch.cat(ranks)  # (q,)


def listed_ranks(scores: Tensor, relevance: Tensor, num_irrelevant: Tensor | int) -> Tensor:
    """Like `best_ranks` if only `k` candidates per query have a score, `(q, k)`; all others rank below them.

    A query without a relevant candidate among them ranks last, at `num_irrelevant`.

    Example:
        >>> scores = torch.tensor([[0.2, 0.9], [0.8, 0.1]])
        >>> listed_ranks(scores, torch.tensor([[True, False], [False, False]]), num_irrelevant=6)
        tensor([1, 6])
    """
    ranks = best_ranks(scores, relevance)
    return torch.where(relevance.any(dim=1), ranks, torch.as_tensor(num_irrelevant, device=ranks.device))


def _chance(relevance: Tensor, k: int) -> float:
    """Returns the mean probability over rows that `k` random candidates include a relevant one."""
    num_queries, num_candidates = relevance.shape
    k = min(k, num_candidates)
    num_relevant, num_rows = relevance.sum(dim=1).unique(return_counts=True)
    misses = (
        rows * math.comb(num_candidates - relevant, k) / math.comb(num_candidates, k)
        for relevant, rows in zip(num_relevant.tolist(), num_rows.tolist(), strict=True)
    )
    return 1 - math.fsum(misses) / num_queries


def _recalls(ranks: Tensor, ks: Sequence[int]) -> dict[int, float]:
    ranks = ranks.cpu()  # MPS has no float64
    return {k: (ranks < k).double().mean().item() for k in ks}


def _report(recalls: dict[str, dict[int, float]]) -> dict[str, float]:
    """Flattens the recalls and adds their mean."""
    flat = {f"{direction}_r@{k}": value for direction, by_k in recalls.items() for k, value in by_k.items()}
    return {**flat, "r_mean": math.fsum(flat.values()) / len(flat)}


def _checked_scores(scores: Tensor | np.ndarray) -> Tensor:
    scores = torch.as_tensor(scores)
    if scores.ndim != 2 or not scores.is_floating_point():
        raise ValueError(
            f"scores must be a floating-point matrix (images, texts), got {scores.dtype} of shape {tuple(scores.shape)}."
        )
    return scores


def _checked_relevance(relevance: Tensor | np.ndarray) -> Tensor:
    relevance = torch.as_tensor(relevance)
    if relevance.ndim != 2 or relevance.dtype != torch.bool or not relevance.numel():
        raise ValueError(
            f"relevance must be a boolean matrix with entries (images, texts), got {relevance.dtype} of shape"
            f" {tuple(relevance.shape)}. Use `relevance_matrix` to build one from text_to_image."
        )
    for dim, query in enumerate(("texts", "images")):
        missing = (~relevance.any(dim=dim)).sum().item()
        if missing:
            raise ValueError(f"{missing} {query} have no relevant counterpart. Leave them out.")
    return relevance


def _check_ks(ks: Sequence[int]) -> None:
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must contain at least one number, and only positive ones, got {tuple(ks)}.")


__all__ = ["best_ranks", "chance_recalls", "listed_ranks", "rank_metrics", "relevance_matrix", "retrieval_recalls"]
