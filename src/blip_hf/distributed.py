# SPDX-License-Identifier: BSD-3-Clause
"""Collective operations that do nothing on one process, also without `torch.distributed` initialised."""

from typing import Any

import torch
from torch import Tensor, distributed


def world_size() -> int:
    """Number of processes; 1 if `torch.distributed` is not initialised."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Rank of this process; 0 if `torch.distributed` is not initialised."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


@torch.no_grad()
def gather(tensor: Tensor) -> Tensor:
    """Concatenates the rows of all processes in rank order, without gradient. Numbers of rows may differ."""
    return tensor if world_size() == 1 else _gather_rows(tensor, _row_counts(tensor))


def gather_objects(items: list[Any]) -> list[Any]:
    """Concatenates the lists of all processes in rank order. Items can be pickled."""
    if world_size() == 1:
        return items
    parts: list[list[Any]] = [[]] * world_size()
    distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Like [`gather`], with gradients: each process receives the sum of the gradients of its rows from all processes.

    All processes must run forward and backward. If data parallelism averages gradients and the loss is a mean over all
    gathered rows, the gradients equal those of one process with all rows.
    """
    return tensor if world_size() == 1 else _GatherWithGradient.apply(tensor)


@torch.no_grad()
def mean_over_ranks(number: Tensor) -> Tensor:
    """Mean of a scalar over all processes, in fp32.

    A sum of this process divided by the mean count of all processes is its part of the global mean: data parallelism
    averages these parts.
    """
    if world_size() == 1:
        return number
    total = number.detach().to(torch.float32, copy=True)
    distributed.all_reduce(total)
    return total / world_size()


def first_row(tensor: Tensor) -> int:
    """Index of this process's first row in the output of [`gather`]."""
    return 0 if world_size() == 1 else sum(_row_counts(tensor)[: rank()])


@torch.no_grad()
def pad_to_longest(tensor: Tensor, value: int) -> Tensor:
    """Pads `(b, t)` on the right to the longest `t` of all processes, so that rows can be gathered."""
    if world_size() == 1:
        return tensor
    longest = torch.tensor(tensor.shape[1], device=tensor.device)
    distributed.all_reduce(longest, distributed.ReduceOp.MAX)
    return torch.nn.functional.pad(tensor, (0, int(longest) - tensor.shape[1]), value=value)


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        counts = _row_counts(tensor)
        start = sum(counts[: rank()])
        ctx.own = slice(start, start + len(tensor))
        return _gather_rows(tensor, counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total[ctx.own]


def _row_counts(tensor: Tensor) -> list[int]:
    """Number of rows of each process."""
    counts = [torch.empty(1, dtype=torch.long, device=tensor.device) for _ in range(world_size())]
    distributed.all_gather(counts, torch.tensor([len(tensor)], device=tensor.device))
    return torch.cat(counts).tolist()


def _gather_rows(tensor: Tensor, counts: list[int]) -> Tensor:
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


__all__ = [
    "first_row",
    "gather",
    "gather_objects",
    "gather_with_gradient",
    "mean_over_ranks",
    "pad_to_longest",
    "rank",
    "world_size",
]
