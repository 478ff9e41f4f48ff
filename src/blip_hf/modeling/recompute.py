# SPDX-License-Identifier: BSD-3-Clause
"""Recomputation of cheap activations in the backward pass, to save memory."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recompute_in_backward(module: nn.Module, function: Callable[..., Any], first: Tensor, *others: Any) -> Any:
    """Calls `function` and keeps only its arguments for the backward pass, which recomputes the rest.

    Backward stops at the last tensor that it needs, so a matrix product at the end of `function` is not repeated. Recompute
    only if the module trains and `first` requires grad.
    """
    if module.training and first.requires_grad:
        return checkpoint(function, first, *others, use_reentrant=False)
    return function(first, *others)


__all__ = ["recompute_in_backward"]
