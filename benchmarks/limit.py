# SPDX-License-Identifier: BSD-3-Clause
"""Hardware limit of a job: its FLOPs and bytes at the peak rates of this machine, measured in the same run."""

import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from blip_hf.modeling.cpu import CpuLinear


ROUNDS = 15
COPIED_BYTES = 2**28


@dataclass(frozen=True)
class Rates:
    """Peak rates of this machine. A multiply-add counts as two FLOPs, a copied byte as one read and one write."""

    flops_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class Demand:
    """FLOPs and bytes of a job, and its minimum time."""

    flops: int
    bytes: int
    seconds: float


class DemandCounter(TorchDispatchMode):
    """Counts FLOPs and bytes of matrix products, and bytes of multi-tensor updates.

    Ignores element-wise operations, which a perfect compiler would fuse. The time of an operation is the maximum of
    arithmetic and memory traffic; the limit of a job is the sum.
    """

    def __init__(self, rates: Rates) -> None:
        super().__init__()
        self.rates = rates
        self.flops = self.bytes = 0
        self.seconds = 0.0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation and adds its FLOPs and bytes."""
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        formula = _FORMULAS.get(function._overloadpacket)
        name = function._schema.name
        if formula is not None or "_foreach_" in name or "_fused_" in name:
            flops = 0 if formula is None else formula(*args, **kwargs, out_val=result)
            # In-place results are also arguments, so they count as read and written.
            moved = sum(leaf.nbytes for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor))
            self.flops += flops
            self.bytes += moved
            self.seconds += max(flops / self.rates.flops_per_second, moved / self.rates.bytes_per_second)
        return result

    def demand(self) -> Demand:
        """Totals so far."""
        return Demand(self.flops, self.bytes, self.seconds)


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, out_val: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward_flops(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, out_val: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(grad_out.shape, query.shape, key.shape, value.shape)


def _linear_flops(states: Tensor, weight: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    return 2 * out_val.numel() * weight.shape[1]


# torch's FLOP counter lacks fused attention on CPUs and oneDNN's linear layer.
_FORMULAS = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    **({torch.ops.mkldnn._linear_pointwise: _linear_flops} if hasattr(torch.ops.mkldnn, "_linear_pointwise") else {}),
}


@cache
@torch.no_grad()
def measure_rates(device: torch.device, dtype: torch.dtype, width: int) -> Rates:
    """Best rates of several matrix products, with all libraries that jobs use, and of several copies."""
    matrix = torch.randn(width, width, device=device).to(dtype)
    product = torch.empty_like(matrix)
    layer = CpuLinear(width, width, bias=False, device=device, dtype=dtype)
    source = torch.zeros(min(COPIED_BYTES, 32 * width * width), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    multiply = min(
        _seconds(work, device)
        for _ in range(ROUNDS)
        for work in (lambda: torch.mm(matrix, matrix, out=product), lambda: layer(matrix))
    )
    copy = min(_seconds(lambda: target.copy_(source), device) for _ in range(ROUNDS))
    return Rates(2 * width**3 / multiply, 2 * source.nbytes / copy)


def _seconds(work: Any, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Synchronises with CUDA; does nothing on CPUs."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


__all__ = ["Demand", "DemandCounter", "Rates", "measure_rates", "synchronize"]
