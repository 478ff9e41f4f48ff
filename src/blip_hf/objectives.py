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
    """Soft targets of ITC: a mixture of the momentum encoder's distribution and the known positives.

    `teacher_logits` and the boolean mask `positives` have the shape `(b, k)`; `alpha` weights the momentum encoder.
    The rows of the result, `(b, k)`, sum to one.

    Example:
        >>> contrastive_targets(torch.zeros(1, 2), torch.tensor([[True, False]]), alpha=0.4)
        tensor([[0.8000, 0.2000]])
    """
    hard = positives.float() / positives.sum(dim=-1, keepdim=True)
    return alpha * teacher_logits.float().softmax(dim=-1) + (1 - alpha) * hard


def contrastive_loss(logits: Tensor, targets: Tensor, *, num_items: int | Tensor | None = None) -> Tensor:
    """ITC loss in one direction: cross-entropy between the softmax of `logits` and soft `targets`, both `(b, k)`.

    The mean over queries (or the sum divided by `num_items`) includes the entropy of the targets, so its minimum is above
    0. One-hot targets give InfoNCE.

    Example:
        >>> contrastive_loss(torch.zeros(4, 8), torch.full((4, 8), 1 / 8))  # log 8
        tensor(2.0794)
    """
    losses = -(targets * logits.float().log_softmax(dim=-1)).sum(dim=-1)  # (b,)
    return losses.mean() if num_items is None else losses.sum() / num_items


def image_text_contrastive_loss(logits_per_text: Tensor) -> Tensor:
    """InfoNCE of `b` pairs, mean of both directions: row `i` and column `i` of the `logits_per_text` `(b, b)` match.

    Example:
        >>> image_text_contrastive_loss(torch.zeros(4, 4))  # log 4
        tensor(1.3863)
    """
    num_texts, num_images = logits_per_text.shape
    if num_texts != num_images:
        raise ValueError(
            f"The contrastive loss got {num_texts} texts and {num_images} images, expected one text for each image. Pass"
            " pairs, or leave out return_loss."
        )
    labels = torch.arange(num_texts, device=logits_per_text.device)
    logits = logits_per_text.float()
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def matching_pairs(image_ids: Tensor, key_ids: Tensor, first_key: int = 0) -> Tensor:
    """Mask `(b, k)` of the keys that match each query: keys of the same image, and the query's own key.

    Ids have shapes `(b,)` and `(k,)`; negative ids are unknown images. Query `i` has key `first_key + i`.

    Example:
        >>> matching_pairs(torch.tensor([7, 8]), torch.tensor([7, 8, 7, -100])).int()
        tensor([[1, 0, 1, 0],
                [0, 1, 0, 0]], dtype=torch.int32)
    """
    own = torch.arange(image_ids.shape[0], device=image_ids.device) + first_key
    columns = torch.arange(key_ids.shape[0], device=image_ids.device)
    same_image = (image_ids[:, None] == key_ids) & (image_ids[:, None] >= 0)
    return same_image | (own[:, None] == columns)


def sample_hard_negatives(
    logits: Tensor, positives: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Samples one negative for each query, in proportion to its contrastive probability, without a device synchronisation.

    `logits` and the mask `positives` of excluded candidates have the shape `(b, k)`. Returns indices `(b,)` and a mask
    `(b,)` that is false for queries without any negative. Probabilities are in fp32 because bf16 would lose the floor
    of 1e-4.
    """
    weights = logits.detach().float().nan_to_num().softmax(dim=-1) + _NEGATIVE_WEIGHT_FLOOR
    weights = weights.masked_fill(positives, 0)
    has_negative = ~positives.all(dim=-1)
    weights = torch.where(has_negative[:, None], weights, torch.ones_like(weights))
    return torch.multinomial(weights, 1, generator=generator).squeeze(1), has_negative


def matching_loss(
    logits: Tensor, labels: Tensor, valid: Tensor | None = None, *, num_items: int | Tensor | None = None
) -> Tensor:
    """ITM loss: mean cross-entropy of `logits` `(b, 2)` (unmatched, matched) over the pairs in the mask `valid` `(b,)`.

    `num_items` replaces the number of valid pairs, which divides the sum. If a third of the pairs match, a model that always predicts this share has a loss of 0.6365.
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    if valid is None:
        return losses.mean()
    return (losses * valid).sum() / (valid.sum() if num_items is None else num_items)


def captioning_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    num_items: int | Tensor | None = None,
) -> Tensor:
    """LM loss: cross-entropy of `logits` `(b, t, v)` and the `targets` `(b, t)` at the same positions, -100 for none.

    `reduction` is `"mean"` over labelled tokens (or the sum divided by `num_items`), `"sum"`, or `"none"` for one sum
    per row.
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
    return losses.view_as(targets).sum(dim=1) if reduction == "none" else losses


__all__ = [
    "captioning_loss",
    "contrastive_loss",
    "contrastive_targets",
    "image_text_contrastive_loss",
    "matching_loss",
    "matching_pairs",
    "sample_hard_negatives",
]
