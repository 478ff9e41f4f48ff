# SPDX-License-Identifier: BSD-3-Clause
"""Faster inference on CPUs: linear layers and attention through oneDNN matrix products.

`docs/performance.md` has the measured speed-ups.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


Model = TypeVar("Model", bound=PreTrainedModel)

# Name under which transformers knows `cpu_attention`.
CPU_ATTENTION = "blip_cpu"
# With both libraries, torch computes fp32 linear layers in MKL and adds the bias in a second pass. In bf16 it uses oneDNN,
# but first copies the bias into every row of the result.
_HAS_ONEDNN_LINEAR = (
    torch.backends.mkl.is_available()
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
_HAS_ONEDNN_BF16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
_DTYPES = {torch.float32, torch.bfloat16} if _HAS_ONEDNN_BF16 else {torch.float32}
# The fused kernel is faster for fewer keys.
_MIN_KEYS = 64
# Scores computed at a time, to fit in the cache.
_MAX_SCORES = 2**21


def optimize_for_cpu(model: Model) -> Model:
    """Replaces the linear layers and the sdpa attention of a BLIP model by faster ones for inference on CPUs, in place.

    Results are equal up to rounding. Training, other devices, and compiled or traced graphs use torch's kernels.
    Tensor names and saved files do not change. Quantise a model before this call, because quantisers look for
    `nn.Linear`. Repeated calls are safe.

    Example:
        ```python
        model = optimize_for_cpu(BlipForConditionalGeneration.from_pretrained("Salesforce/blip-image-captioning-base"))
        ```
    """
    if _HAS_ONEDNN_LINEAR:
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = CpuLinear
    if _HAS_ONEDNN_BF16 and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(CPU_ATTENTION)
    return model


class CpuLinear(nn.Linear):
    """`nn.Linear` that calls oneDNN, bias included, on CPUs without gradients.

    MKL repacks the weights for every call, which dominates a decoding step of a few rows; oneDNN reads them once.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`(..., in_features)` -> `(..., out_features)`."""
        if _can_use_onednn(input, self.weight):
            dtype = _product_dtype(input, self.weight)
            if dtype in _DTYPES:
                bias = None if self.bias is None else self.bias.to(dtype)
                return torch.ops.mkldnn._linear_pointwise(input.to(dtype), self.weight.to(dtype), bias, "none", [], "")
        return super().forward(input)


def _product_dtype(states: Tensor, weight: Tensor) -> torch.dtype | None:
    """Dtype that torch would compute in, or `None` to leave the product to torch."""
    if not torch.is_autocast_enabled("cpu"):
        return weight.dtype if states.dtype == weight.dtype else None
    # Autocast caches the cast of weights that require a gradient. Other weights it casts in every call, as is done here.
    is_cast_in_every_call = not weight.requires_grad and {states.dtype, weight.dtype} <= _DTYPES
    return torch.get_autocast_dtype("cpu") if is_cast_in_every_call else None


def _can_use_onednn(states: Tensor, weight: Tensor) -> bool:
    return bool(
        not torch.is_grad_enabled()
        and states.device.type == weight.device.type == "cpu"
        and type(states) is Tensor  # not fake, traced or vmapped
        and type(weight) in (nn.Parameter, Tensor)  # not quantised
        and states.shape[-1:] == weight.shape[1:]  # torch raises the better error
        and states.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch.backends.mkldnn.enabled
    )


def cpu_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention backend: `matmul_attention` where it is faster, sdpa otherwise."""
    if attention_mask is None and not (is_causal or dropout) and use_matmul_attention(query, key):
        return matmul_attention(query, key, value, scaling), None
    return ALL_ATTENTION_FUNCTIONS["sdpa"](
        module,
        query,
        key,
        value,
        attention_mask,
        scaling=scaling,
        dropout=dropout,
        is_causal=is_causal,
        **kwargs,
    )


def use_matmul_attention(query: Tensor, key: Tensor) -> bool:
    """Whether `matmul_attention` is the fastest attention without a mask: in bf16, with enough keys.

    In bf16, oneDNN's products are more than twice as fast as the fused kernel.
    """
    if query.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return _HAS_ONEDNN_BF16 and query.dtype == torch.bfloat16 and key.shape[2] >= _MIN_KEYS


def matmul_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Softmax attention in two matrix products, a few rows at a time: `(b, h, t, head_dim)` -> `(b, t, h, head_dim)`."""
    _, num_heads, length, _ = query.shape
    rows = max(1, _MAX_SCORES // (num_heads * length * key.shape[2]))
    contexts = []
    for queries, keys, values in zip(query.split(rows), key.split(rows), value.split(rows), strict=True):
        # Products of non-contiguous views of heads are slower than a copy.
        scores = (queries * scaling) @ keys.contiguous().transpose(-1, -2)  # (rows, h, t, p)
        contexts.append((scores.softmax(dim=-1) @ values.contiguous()).transpose(1, 2))
    return torch.cat(contexts)


ALL_ATTENTION_FUNCTIONS.register(CPU_ATTENTION, cpu_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(CPU_ATTENTION, sdpa_mask)


__all__ = [
    "CPU_ATTENTION",
    "CpuLinear",
    "cpu_attention",
    "matmul_attention",
    "optimize_for_cpu",
    "use_matmul_attention",
]
