# SPDX-License-Identifier: BSD-3-Clause
"""Finds NaN and infinity in weights and results, where a silent one would pass for an empty caption or a low score."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel


NUM_NAMED_IDS = 8


class NotFiniteError(ValueError):
    """A loss, a weight or a score that is NaN or infinite. `images` are those that cause it, if the weights do not."""

    def __init__(self, message: str, images: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.images = list(images)


def name_ids(ids: Sequence[Any]) -> str:
    """Lists the first ids.

    Example:
        >>> name_ids(range(10))
        '0, 1, 2, 3, 4, 5, 6, 7 and 2 more'
    """
    named = ", ".join(map(str, ids[:NUM_NAMED_IDS]))
    return f"{named} and {len(ids) - NUM_NAMED_IDS} more" if len(ids) > NUM_NAMED_IDS else named


@torch.no_grad()
def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Returns the name of the first tensor with NaN or infinity. Waits for the device once."""
    floats = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if not floats:
        return None
    shards = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for _, tensor in floats]
    are_finite = torch.stack([shard.isfinite().all() for shard in shards]).tolist()
    return next((name for (name, _), is_finite in zip(floats, are_finite, strict=True) if not is_finite), None)


def require_finite_results(are_finite: Sequence[bool], ids: Sequence[Any], **models: PreTrainedModel) -> None:
    """Raises if a result of a model is not finite, and names the weight or the images that cause it.

    Args:
        are_finite (sequence of `bool`):
            Whether the results of each image are finite.
        ids (sequence):
            The images.
        **models (`PreTrainedModel`):
            The models by their role. Their weights are looked at only if a result is not finite.

    Raises:
        NotFiniteError: With the weight or the images.
    """
    if all(are_finite):
        return
    for role, model in models.items():
        name = first_not_finite(model.named_parameters())
        if name is not None:
            source = f" {model.config.name_or_path}" if model.config.name_or_path else ""
            raise NotFiniteError(
                f"The weights of the {role}{source} hold NaN or infinity, first in {name}. Its training diverged or its file"
                " is damaged: use another checkpoint."
            )
    bad = [image for image, is_finite in zip(ids, are_finite, strict=True) if not is_finite]
    raise NotFiniteError(
        f"The results for the images {name_ids(bad)} are NaN or infinite, and the weights are not. Look for pixels that are"
        " NaN or infinite in these images and remove them, or use float32 if the model runs in half precision.",
        bad,
    )


__all__ = ["NotFiniteError", "first_not_finite", "name_ids", "require_finite_results"]
