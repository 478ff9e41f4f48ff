# SPDX-License-Identifier: BSD-3-Clause
"""Collectives that are the identity on one process, so no code path needs `torch.distributed` to be set up."""

import torch
from torch import Tensor, distributed


def world_size() -> int:
    """Number of processes; 1 where `torch.distributed` is not initialised."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


@torch.no_grad()
def gather(tensor: Tensor) -> Tensor:
    """Concatenates a tensor over all processes in rank order, without gradient.

    Numbers of rows may differ: a process that had to leave out a record has fewer.

    Args:
        tensor (`torch.Tensor` of shape `(b, ...)`):
            This process's rows; the same shape on each process but for their number.

    Returns:
        `torch.Tensor` of shape `(sum of b, ...)`: The whole; `tensor` itself on one process.
    """
    if world_size() == 1:
        return tensor
    counts = [torch.empty(1, dtype=torch.long, device=tensor.device) for _ in range(world_size())]
    distributed.all_gather(counts, torch.tensor([len(tensor)], device=tensor.device))
    counts = torch.cat(counts).tolist()
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


__all__ = ["gather", "world_size"]
