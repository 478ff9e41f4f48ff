# SPDX-License-Identifier: BSD-3-Clause
"""What is logged about a run: running means that stay on the device, and recall within a set."""

import torch
from torch import Tensor

from ..distributed import gather
from ..evaluation.recall import retrieval_recalls
from ..modeling.outputs import BlipContrastiveOutput


class RunningMeans:
    """Weighted means by name. Adding waits for no device; `pop` does, once."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor, weight: int | Tensor) -> None:
        """Adds a value.

        Args:
            name (`str`):
                Which mean.
            value (scalar `torch.Tensor`):
                The value; its graph is dropped.
            weight (`int` or scalar `torch.Tensor`):
                How much it counts.
        """
        value = value.detach().float()
        weight = torch.ones_like(value) * weight
        self._sums[name] = self._sums.get(name, 0) + torch.stack([value * weight, weight])

    def add_output(self, output: BlipContrastiveOutput, weight: int = 1) -> None:
        """Adds the losses of a batch and its matching accuracy.

        Args:
            output (`BlipContrastiveOutput`):
                What the model returned. What it left out, such as the matching loss of one pair, counts nothing.
            weight (`int`, *optional*, defaults to 1):
                How much each pair counts; with 0 the names are there for the other processes.
        """
        num_pairs = weight * len(output.image_features)
        for name in ("loss_itc", "loss_lm"):
            if name in output:
                self.add(name, output[name], num_pairs)
        if output.itm_logits is not None:
            is_made = output.itm_labels != -100
            is_right = is_made & (output.itm_logits.argmax(dim=-1) == output.itm_labels)
            self.add("loss_itm", output.loss_itm, num_pairs)
            self.add("itm_accuracy", is_right.sum() / is_made.sum(), weight * is_made.sum())
        elif output.loss_itm is not None:  # one pair; processes gather the same names, whatever their batches
            self.add("loss_itm", output.loss_itm, 0)
            self.add("itm_accuracy", output.loss_itm, 0)

    def pop(self) -> dict[str, float]:
        """Returns the means since the last call, over all processes, and starts afresh; of no weight there is none."""
        if not self._sums:
            return {}
        sums = gather(torch.stack(list(self._sums.values()))[None]).sum(dim=0).tolist()  # (names, 2)
        means = {name: total / weight for name, (total, weight) in zip(self._sums, sums, strict=True) if weight}
        self._sums = {}
        return means


def recalls_in_set(image_features: Tensor, text_features: Tensor, image_ids: Tensor) -> dict[str, float]:
    """Recall by contrastive features alone, every image against every text of a set.

    Args:
        image_features (`torch.Tensor` of shape `(n, d)`):
            Normalised, one row a pair.
        text_features (`torch.Tensor` of shape `(n, d)`):
            Normalised, one row a pair.
        image_ids (`torch.Tensor` of shape `(n,)`):
            Equal for the captions of one image, which then counts once; negative for an image of its own.

    Returns:
        `dict[str, float]`: As [`~blip_hf.evaluation.recall.retrieval_recalls`].
    """
    rows = torch.arange(len(image_ids), device=image_ids.device)
    image_ids = torch.where(image_ids < 0, -1 - rows, image_ids)
    _, text_to_image = image_ids.unique(return_inverse=True)  # (n,)
    # Rows of one image are equal, whichever of them is kept.
    images = torch.empty(int(text_to_image.max()) + 1, dtype=torch.long, device=image_ids.device)
    images[text_to_image] = rows
    return retrieval_recalls(image_features[images] @ text_features.T, text_to_image)


__all__ = ["RunningMeans", "recalls_in_set"]
