# SPDX-License-Identifier: BSD-3-Clause
"""The physical limit of a job: what it computes and moves, over the rates of this machine measured in the same run."""

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
    """What this machine does at best: multiply-adds count as two FLOPs, a copied byte as one read and one written."""

    flops_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class Demand:
    """What was counted of a job, and the least time it could take."""

    flops: int
    bytes: int
    seconds: float


class DemandCounter(TorchDispatchMode):
    """Counts FLOPs of matrix products and bytes that they, and updates of many tensors at once, must move.

    Element by element operations are taken to be free, as a perfect compiler would fuse them with a product. Each
    counted operation takes the longer of its arithmetic and its traffic; the limit of a job is the sum.
    """

    def __init__(self, rates: Rates) -> None:
        super().__init__()
        self.rates = rates
        self.flops = self.bytes = 0
        self.seconds = 0.0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation and adds up what it takes."""
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        formula = _FORMULAS.get(function._overloadpacket)
        name = function._schema.name
        if formula is not None or "_foreach_" in name or "_fused_" in name:
            flops = 0 if formula is None else formula(*args, **kwargs, out_val=result)
            # What is changed in place is among the arguments and the results: it is read and written.
            moved = sum(leaf.nbytes for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor))
            self.flops += flops
            self.bytes += moved
            self.seconds += max(flops / self.rates.flops_per_second, moved / self.rates.bytes_per_second)
        return result

    def demand(self) -> Demand:
        """All that was counted so far."""
        return Demand(self.flops, self.bytes, self.seconds)


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, out_val: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward_flops(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, out_val: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(grad_out.shape, query.shape, key.shape, value.shape)


def _linear_flops(states: Tensor, weight: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    return 2 * out_val.numel() * weight.shape[1]


# The counter of torch does not know the fused attention of CPUs, and oneDNN's dense layer.
_FORMULAS = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    **({torch.ops.mkldnn._linear_pointwise: _linear_flops} if hasattr(torch.ops.mkldnn, "_linear_pointwise") else {}),
}


@cache
@torch.no_grad()
def measure_rates(device: torch.device, dtype: torch.dtype, width: int) -> Rates:
    """The best of several products of square matrices, by all libraries that jobs use, and of several copies."""
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
    """Waits for an accelerator; CPUs are never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


__all__ = ["Demand", "DemandCounter", "Rates", "measure_rates", "synchronize"]
