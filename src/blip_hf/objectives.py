# SPDX-License-Identifier: BSD-3-Clause
"""The three objectives of BLIP (paper, section 3.2) as pure functions: tensors in, tensors out.

Letters: `b` batch, `k` keys = batch + queue, `d` width, `t` tokens, `v` vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


# Floor of the sampling weights of hard negatives, salesforce/BLIP models/blip_pretrain.py.
_NEGATIVE_WEIGHT_FLOOR = 1e-4


def contrastive_targets(teacher_logits: Tensor, positives: Tensor, alpha: float | Tensor) -> Tensor:
    """Soft targets of the contrastive objective: the momentum towers' belief mixed with the known positives.

    Args:
        teacher_logits (`torch.Tensor` of shape `(b, k)`):
            Momentum-to-momentum similarities over the temperature.
        positives (`torch.Tensor` of shape `(b, k)`):
            Boolean: the keys that belong to each query.
        alpha (`float` or scalar `torch.Tensor`):
            Share of the momentum towers, 0 to 1.

    Returns:
        `torch.Tensor` of shape `(b, k)`: Rows that sum to one.

    Example:
        >>> contrastive_targets(torch.zeros(1, 2), torch.tensor([[True, False]]), alpha=0.4)
        tensor([[0.8000, 0.2000]])
    """
    hard = positives.float() / positives.sum(dim=-1, keepdim=True)
    return alpha * teacher_logits.float().softmax(dim=-1) + (1 - alpha) * hard


def contrastive_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy between the softmax of similarities and soft targets: one direction of ITC.

    Args:
        logits (`torch.Tensor` of shape `(b, k)`):
            Similarities over the temperature. Gradients flow here.
        targets (`torch.Tensor` of shape `(b, k)`):
            Target distribution over keys; one-hot rows give InfoNCE.

    Returns:
        `torch.Tensor`: scalar, the mean over queries. It contains the targets' own entropy, so it does not approach 0.

    Example:
        >>> contrastive_loss(torch.zeros(4, 8), torch.full((4, 8), 1 / 8))  # log 8
        tensor(2.0794)
    """
    return -(targets * logits.float().log_softmax(dim=-1)).sum(dim=-1).mean()


def matching_pairs(image_ids: Tensor, key_ids: Tensor, first_key: int = 0) -> Tensor:
    """Which keys belong to which query: those of the same image, and always its own.

    Args:
        image_ids (`torch.Tensor` of shape `(b,)`):
            Image of each query; negative where it is unknown.
        key_ids (`torch.Tensor` of shape `(k,)`):
            Image of each key; negative where it is unknown.
        first_key (`int`, *optional*, defaults to 0):
            Which key is the first query's own; those of the other queries follow it.

    Returns:
        `torch.Tensor` of shape `(b, k)`: boolean.

    Example:
        >>> matching_pairs(torch.tensor([7, 8]), torch.tensor([7, 8, 7, -100])).int()
        tensor([[1, 0, 1, 0],
                [0, 1, 0, 0]], dtype=torch.int32)
    """
    own = torch.arange(len(image_ids), device=image_ids.device) + first_key
    columns = torch.arange(len(key_ids), device=image_ids.device)
    same_image = (image_ids[:, None] == key_ids) & (image_ids[:, None] >= 0)
    return same_image | (own[:, None] == columns)


def sample_hard_negatives(
    logits: Tensor, positives: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draws one negative for each query, in proportion to its contrastive probability.

    One batched draw, nothing is read back to the host. Probabilities are taken in fp32, because a floor of 1e-4 drowns
    in bf16.

    Args:
        logits (`torch.Tensor` of shape `(b, b)`):
            Similarities over the temperature.
        positives (`torch.Tensor` of shape `(b, b)`):
            Boolean: candidates that match the query and may not be drawn.
        generator (`torch.Generator`, *optional*):
            Source of randomness.

    Returns:
        `tuple`: the drawn candidates of shape `(b,)`, and a boolean of shape `(b,)`, false where a query has no negative
        at all (its draw then means nothing).
    """
    weights = logits.detach().float().nan_to_num().softmax(dim=-1) + _NEGATIVE_WEIGHT_FLOOR
    weights = weights.masked_fill(positives, 0)
    has_negative = ~positives.all(dim=-1)
    weights = torch.where(has_negative[:, None], weights, torch.ones_like(weights))
    return torch.multinomial(weights, 1, generator=generator).squeeze(1), has_negative


def matching_loss(logits: Tensor, labels: Tensor, valid: Tensor | None = None) -> Tensor:
    """Cross-entropy of matched against unmatched pairs: ITM.

    Always answering "unmatched" scores 0.6365 where a third of the pairs match.

    Args:
        logits (`torch.Tensor` of shape `(b, 2)`):
            Scores of unmatched and matched.
        labels (`torch.Tensor` of shape `(b,)`):
            1 for matched pairs, 0 for others.
        valid (`torch.Tensor` of shape `(b,)`, *optional*):
            Boolean: pairs that count.

    Returns:
        `torch.Tensor`: scalar, the mean over the pairs that count.
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    if valid is None:
        return losses.mean()
    return (losses * valid).sum() / valid.sum()


def captioning_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    num_items: int | Tensor | None = None,
) -> Tensor:
    """Label-smoothed cross-entropy of the next token: LM.

    Args:
        logits (`torch.Tensor` of shape `(b, t, v)`):
            Scores, already aligned with `targets`.
        targets (`torch.Tensor` of shape `(b, t)`):
            Token ids, -100 where there is no loss.
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Share of the uniform distribution in the targets.
        reduction (`str`, *optional*, defaults to `"mean"`):
            `"mean"` over labelled tokens, `"sum"`, or `"none"` for one sum per row.
        num_items (`int` or `torch.Tensor`, *optional*):
            Divisor of the sum in place of this batch's labelled tokens, with `reduction="mean"`.

    Returns:
        `torch.Tensor`: scalar, or of shape `(b,)` with `reduction="none"`.

    Raises:
        ValueError: If `reduction` is unknown.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {reduction!r}, expected 'mean', 'sum' or 'none'.")
    if reduction == "mean" and num_items is not None:
        return captioning_loss(logits, targets, label_smoothing=label_smoothing, reduction="sum") / num_items
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(),
        targets.flatten().to(logits.device),
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    return losses.unflatten(0, targets.shape).sum(dim=1) if reduction == "none" else losses


__all__ = [
    "captioning_loss",
    "contrastive_loss",
    "contrastive_targets",
    "matching_loss",
    "matching_pairs",
    "sample_hard_negatives",
]
