# SPDX-License-Identifier: BSD-3-Clause
"""Metrics of a run: running means that stay on the device, and recall within a set."""

import torch
from torch import Tensor

from ..distributed import gather, world_size
from ..evaluation.recall import retrieval_recalls
from ..modeling.outputs import BlipContrastiveOutput


# Names of the recalls of `recalls_in_set`.
RECALL_NAMES = (*(f"{way}_r@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)), "r_mean")


class RunningMeans:
    """Weighted means by name. Only `pop` synchronises with the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor, weight: int | Tensor) -> None:
        """Adds a scalar value without its graph."""
        value = value.detach().float()
        weight = torch.ones_like(value) * weight
        self._sums[name] = self._sums.get(name, 0) + torch.stack([value * weight, weight])

    def add_output(self, output: BlipContrastiveOutput, weight: int) -> None:
        """Adds the losses of a batch and its ITM accuracy; with `weight=0` only their names, for other processes."""
        for name in ("loss_itc", "loss_lm"):
            if name in output:
                self.add(name, output[name], weight)
        if output.itm_logits is not None and output.itm_labels is not None and output.loss_itm is not None:
            is_made = output.itm_labels != -100
            is_right = is_made & (output.itm_logits.argmax(dim=-1) == output.itm_labels)
            self.add("loss_itm", output.loss_itm, weight)
            self.add("itm_accuracy", is_right.sum() / is_made.sum(), bool(weight) * is_made.sum())
        elif output.loss_itm is not None:  # a batch of one pair: all processes gather the same names
            # The losses of several processes are parts of one mean, to which this one contributes nothing.
            self.add("loss_itm", output.loss_itm, weight if world_size() > 1 else 0)
            self.add("itm_accuracy", output.loss_itm, 0)

    def pop(self) -> dict[str, float]:
        """Returns the means since the last call, over all processes; names without weight are left out."""
        if not self._sums:
            return {}
        sums = gather(torch.stack(list(self._sums.values()))[None]).sum(dim=0).tolist()  # (names, 2)
        means = {name: total / weight for name, (total, weight) in zip(self._sums, sums, strict=True) if weight}
        self._sums = {}
        return means


def recalls_in_set(image_features: Tensor, text_features: Tensor, image_ids: Tensor) -> dict[str, float]:
    """Recall by contrastive features alone, each image against each text of a set.

    Features have shape `(n, d)`, one row per pair. Equal `image_ids` of shape `(n,)` mark captions of one image, which
    counts once; a negative id is an image of its own.
    """
    rows = torch.arange(len(image_ids), device=image_ids.device)
    image_ids = torch.where(image_ids < 0, -1 - rows, image_ids)
    _, text_to_image = image_ids.unique(return_inverse=True)  # (n,)
    # All rows of one image are equal, so any of them can be kept.
    images = torch.empty(int(text_to_image.max()) + 1, dtype=torch.long, device=image_ids.device)
    images[text_to_image] = rows
    return retrieval_recalls(image_features[images] @ text_features.T, text_to_image)


__all__ = ["RECALL_NAMES", "RunningMeans", "recalls_in_set"]
