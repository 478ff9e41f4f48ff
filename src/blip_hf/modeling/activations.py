# SPDX-License-Identifier: BSD-3-Clause
"""Counts the memory of the tensors that a forward pass keeps for the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class SavedTensors:
    """Sizes of the storages that were kept, weights and buffers excluded."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}

    @property
    def num_bytes(self) -> int:
        """Their bytes."""
        return sum(self.sizes.values())


@contextmanager
def record_saved_tensors(model: nn.Module) -> Iterator[SavedTensors]:
    """Records the forward pass in the block. Keep its loss until the block ends: a freed storage may be used again."""
    weights = {_storage(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    saved = SavedTensors()

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            saved.sizes[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


__all__ = ["SavedTensors", "record_saved_tensors"]
