# SPDX-License-Identifier: BSD-3-Clause
"""Memory for a little time: what is cheap to make again is not kept for backward."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recompute_in_backward(module: nn.Module, function: Callable[..., Any], first: Tensor, *others: Any) -> Any:
    """Calls a function whose last costly operation is at its end, and keeps only its arguments for backward.

    Backward runs it again up to the last tensor that the gradient needs, so that a product at its end is not repeated.
    Values and gradients are the same. Without training or gradients this is a plain call.
    """
    if module.training and first.requires_grad:
        return checkpoint(function, first, *others, use_reentrant=False)
    return function(first, *others)


__all__ = ["recompute_in_backward"]
