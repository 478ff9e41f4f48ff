# SPDX-License-Identifier: BSD-3-Clause
"""The dense layer of all towers."""

import torch
from torch import Tensor, nn


# Where torch has both libraries, `nn.Linear` computes fp32 products in MKL, then adds the bias in a pass of its own.
_HAS_CHOICE = (
    torch.backends.mkl.is_available()
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


class Linear(nn.Linear):
    """`nn.Linear`, whose fp32 products on CPUs are oneDNN's where no gradient is asked for.

    oneDNN reads the weights once, MKL packs them anew for each of the few rows of a decoding step. The results are equal
    within rounding. Quantised weights, autocast, compiled graphs and training take torch's own way.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`(..., in_features)` -> `(..., out_features)`."""
        if _HAS_CHOICE and _is_plain(input, self.weight):
            return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
        return super().forward(input)


def _is_plain(states: Tensor, weight: Tensor) -> bool:
    """Whether this is a product of fp32 numbers on a CPU and nothing else looks at it."""
    return (
        not torch.is_grad_enabled()
        and states.dtype == weight.dtype == torch.float32
        and states.device.type == weight.device.type == "cpu"
        and type(states) is Tensor  # neither fake, traced nor mapped over
        and type(weight) in (nn.Parameter, Tensor)  # nor quantised
        and states.shape[-1:] == weight.shape[1:]  # torch says best what does not fit
        and states.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch.backends.mkldnn.enabled
    )


__all__ = ["Linear"]
