# SPDX-License-Identifier: BSD-3-Clause
"""Attention in plain products, which beats torch's fused kernel on CPUs in bf16.

The fused kernel computes in bf16 no faster than in fp32, and prepares keys and values for many queries, which a step of
decoding does not have; oneDNN's products are more than twice as fast. docs/performance.md has the figures.
"""

import torch
from torch import Tensor


# Shorter memories are read faster than a choice pays.
_LEAST_KEYS = 64
# Scores made at a time, which caches hold.
_MOST_SCORES = 2**21


def use_matmul_attention(query: Tensor, key: Tensor) -> bool:
    """Whether `matmul_attention` is the fastest for this attention without a mask.

    Args:
        query (`torch.Tensor` of shape `(b, h, t, head_dim)`):
            Queries.
        key (`torch.Tensor` of shape `(b, h, p, head_dim)`):
            Keys.

    Returns:
        `bool`: never true where a gradient may be asked for, or a compiler chooses kernels.
    """
    if query.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    is_long = key.shape[2] >= _LEAST_KEYS
    return is_long and query.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def matmul_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Softmax attention, a few rows of the batch at a time.

    Args:
        query (`torch.Tensor` of shape `(b, h, t, head_dim)`):
            Queries.
        key (`torch.Tensor` of shape `(b, h, p, head_dim)`):
            Keys.
        value (`torch.Tensor` of shape `(b, h, p, head_dim)`):
            Values.
        scaling (`float`):
            Factor of the scores.

    Returns:
        `torch.Tensor` of shape `(b, t, h, head_dim)`: the context.
    """
    _, num_heads, length, _ = query.shape
    rows = max(1, _MOST_SCORES // (num_heads * length * key.shape[2]))
    parts = []
    for some_queries, some_keys, some_values in zip(
        query.split(rows), key.split(rows), value.split(rows), strict=True
    ):
        # Products of views that interleave heads are slower than their copies.
        scores = (some_queries * scaling) @ some_keys.contiguous().transpose(-1, -2)
        parts.append((scores.softmax(dim=-1) @ some_values.contiguous()).transpose(1, 2))
    return torch.cat(parts)


__all__ = ["matmul_attention", "use_matmul_attention"]
