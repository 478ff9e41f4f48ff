# SPDX-License-Identifier: BSD-3-Clause
"""Notices NaN in generation, where it would give an empty text."""

import torch
from torch import Tensor
from transformers import LogitsProcessor


class LogitsCheck(LogitsProcessor):
    """Notes which rows have finite logits for their first token, once for each call of `generate`. Changes nothing."""

    def __init__(self) -> None:
        self._are_finite: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the scores `(rows, v)` as they are."""
        if self._are_finite is None:
            # A comparison with NaN is false. Other processors write -inf.
            self._are_finite = (scores < torch.inf).all(dim=-1)
        return scores

    def by_image(self, num_images: int) -> list[bool]:
        """Returns whether all rows of each image are finite. Waits for the device."""
        if self._are_finite is None:
            return [True] * num_images
        return self._are_finite.view(num_images, -1).all(dim=1).tolist()


__all__ = ["LogitsCheck"]
