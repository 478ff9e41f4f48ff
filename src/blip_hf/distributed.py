# SPDX-License-Identifier: BSD-3-Clause
"""Collectives that are the identity on one process, so no code path needs `torch.distributed` to be set up."""

import torch
from torch import Tensor, distributed


def world_size() -> int:
    """Number of processes; 1 where `torch.distributed` is not initialised."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0; 0 where `torch.distributed` is not initialised."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


@torch.no_grad()
def gather(tensor: Tensor) -> Tensor:
    """Concatenates a tensor over all processes in rank order, without gradient.

    Numbers of rows may differ: a process that had to leave out a record has fewer.
    """
    return tensor if world_size() == 1 else _gather_rows(tensor, _row_counts(tensor))


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """As [`gather`]; in the backward pass each process gets the gradients of its rows from all processes, summed.

    All processes have to run both passes. Where they average the gradients of their parameters, as data parallelism
    does, a mean over processes of losses of the gathered rows has the gradients of one process with all rows.
    """
    return tensor if world_size() == 1 else _GatherWithGradient.apply(tensor)


def first_row(tensor: Tensor) -> int:
    """Where this process's rows start in what [`gather`] returns for them."""
    return 0 if world_size() == 1 else sum(_row_counts(tensor)[: rank()])


@torch.no_grad()
def pad_to_longest(tensor: Tensor, value: int) -> Tensor:
    """Pads the second axis on the right to its longest on any process, so that the rows can be gathered."""
    if world_size() == 1:
        return tensor
    longest = torch.tensor(tensor.shape[1], device=tensor.device)
    distributed.all_reduce(longest, distributed.ReduceOp.MAX)
    return torch.nn.functional.pad(tensor, (0, int(longest) - tensor.shape[1]), value=value)


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor) -> Tensor:
        counts = _row_counts(tensor)
        start = sum(counts[: rank()])
        ctx.own = slice(start, start + len(tensor))
        return _gather_rows(tensor, counts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total[ctx.own]


def _row_counts(tensor: Tensor) -> list[int]:
    """Numbers of rows on all processes."""
    counts = [torch.empty(1, dtype=torch.long, device=tensor.device) for _ in range(world_size())]
    distributed.all_gather(counts, torch.tensor([len(tensor)], device=tensor.device))
    return torch.cat(counts).tolist()


def _gather_rows(tensor: Tensor, counts: list[int]) -> Tensor:
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


__all__ = ["first_row", "gather", "gather_with_gradient", "pad_to_longest", "rank", "world_size"]
