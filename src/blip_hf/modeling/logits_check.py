# SPDX-License-Identifier: BSD-3-Clause
"""Notices NaN in generation, where it would give an empty text."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from ..finite import require_finite_results


class LogitsCheck(LogitsProcessor):
    """Raises if the logits of the first token are not finite; later ones are not looked at. Changes nothing.

    Args:
        ids (sequence):
            The images, for the message.
        **models (`nn.Module`):
            The model by its role, as for [`~blip_hf.finite.require_finite_results`].
    """

    def __init__(self, ids: Sequence[Any], **models: PreTrainedModel) -> None:
        self._ids = ids
        self._models = models
        self._is_done = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the scores `(rows, v)` as they are. `generate` waits for the device after each token anyway."""
        if not self._is_done:
            self._is_done = True
            # A comparison with NaN is false. Other processors write -inf.
            are_finite = (scores < torch.inf).view(len(self._ids), -1).all(dim=1)
            require_finite_results(are_finite.tolist(), self._ids, **self._models)
        return scores


__all__ = ["LogitsCheck"]
