# SPDX-License-Identifier: BSD-3-Clause
"""The dense layer of all towers."""

import torch
from torch import Tensor, nn


# Where torch has both libraries, `nn.Linear` computes fp32 products in MKL, then adds the bias in a pass of its own; to
# bf16 products, which are oneDNN's, it gives the bias as a copy in every row of the result.
_HAS_CHOICE = (
    torch.backends.mkl.is_available()
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
_DTYPES = {torch.float32}
if _HAS_CHOICE and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    _DTYPES.add(torch.bfloat16)


class Linear(nn.Linear):
    """`nn.Linear`, whose products on CPUs are oneDNN's with the bias in them, where no gradient is asked for.

    In fp32, oneDNN reads the weights once, MKL packs them anew for each of the few rows of a decoding step. The results are
    equal within rounding. Quantised weights, compiled graphs and training take torch's own way.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`(..., in_features)` -> `(..., out_features)`."""
        if _HAS_CHOICE and _is_plain(input, self.weight):
            dtype = _product_dtype(input, self.weight)
            if dtype in _DTYPES:
                bias = None if self.bias is None else self.bias.to(dtype)
                return torch.ops.mkldnn._linear_pointwise(input.to(dtype), self.weight.to(dtype), bias, "none", [], "")
        return super().forward(input)


def _product_dtype(states: Tensor, weight: Tensor) -> torch.dtype | None:
    """What torch would compute in, or `None` where that is better left to it."""
    if not torch.is_autocast_enabled("cpu"):
        return weight.dtype if states.dtype == weight.dtype else None
    # Autocast casts weights that have a gradient once for a whole region, others for each product, as is done here.
    is_cast_anew = not weight.requires_grad and {states.dtype, weight.dtype} <= _DTYPES
    return torch.get_autocast_dtype("cpu") if is_cast_anew else None


def _is_plain(states: Tensor, weight: Tensor) -> bool:
    """Whether this is a product on a CPU and nothing else looks at it."""
    return (
        not torch.is_grad_enabled()
        and states.device.type == weight.device.type == "cpu"
        and type(states) is Tensor  # neither fake, traced nor mapped over
        and type(weight) in (nn.Parameter, Tensor)  # nor quantised
        and states.shape[-1:] == weight.shape[1:]  # torch says best what does not fit
        and states.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch.backends.mkldnn.enabled
    )


__all__ = ["Linear"]
