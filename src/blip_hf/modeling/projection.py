# SPDX-License-Identifier: BSD-3-Clause
"""The role token at position 0, and the projected features of that position."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


def with_first_token(input_ids: Tensor, token_id: int | Tensor) -> Tensor:
    """Copies `input_ids` of shape `(b, t)` with another token ([CLS], [ENC] or [DEC], or one per row) at position 0."""
    is_first = torch.arange(input_ids.shape[1], device=input_ids.device) == 0
    return torch.where(is_first, token_id, input_ids)


def pool_and_project(states: Tensor, projection: nn.Module) -> Tensor:
    """Normalised projection of position 0, in fp32: `(b, t, d)` -> `(b, feature)`."""
    return normalize(projection(states[:, 0]).float(), dim=-1)


__all__ = ["pool_and_project", "with_first_token"]
