# SPDX-License-Identifier: BSD-3-Clause
"""Estimate of the memory that a step of training takes on each device."""

from typing import Any

from torch import Tensor

from ..modeling.activations import record_saved_tensors
from .distributed_trainer import DistributedTrainer


GIB = 2**30
# Two float32 values for each trained weight.
_ADAM_BYTES = 8


def estimate_memory(
    trainer: DistributedTrainer, inputs: dict[str, Any], batch_size: int, *, unit: int = GIB
) -> dict[str, float]:
    """Returns the GiB (or multiples of `unit` bytes) of `weights`, `gradients`, `optimizer` (AdamW), `activations` and their `total`.

    Runs a forward pass, counts the tensors that it keeps for the backward pass, and scales them from the records of
    `inputs` to a batch. Temporary tensors and the libraries of the device are not counted.
    """
    model = trainer.model
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    gradients = sum(_bytes(parameter) for parameter in model.parameters() if parameter.requires_grad)
    sizes = {
        "weights": sum(map(_bytes, [*model.parameters(), *model.buffers()])),
        "gradients": gradients,
        "optimizer": _ADAM_BYTES * trained,
        "activations": _saved_bytes(trainer, inputs) * batch_size / len(inputs["pixel_values"]),
    }
    return {name: round(size / unit, 3) for name, size in {**sizes, "total": sum(sizes.values())}.items()}


def _saved_bytes(trainer: DistributedTrainer, inputs: dict[str, Any]) -> int:
    """Bytes of all tensors that a forward pass keeps for the backward pass, without the weights."""
    trainer.model.train()
    inputs = trainer._prepare_inputs(inputs)
    with record_saved_tensors(trainer.model) as saved, trainer.compute_loss_context_manager():
        _loss = trainer.compute_loss(trainer.model, inputs)  # kept until the block ends
    return saved.num_bytes


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


__all__ = ["estimate_memory"]
