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

    Args:
        tensor (`torch.Tensor` of shape `(b, ...)`):
            This process's part; the same shape on each process.

    Returns:
        `torch.Tensor` of shape `(b * world_size, ...)`: The whole; `tensor` itself on one process.
    """
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


__all__ = ["gather", "world_size"]
