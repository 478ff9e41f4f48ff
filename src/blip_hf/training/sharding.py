# SPDX-License-Identifier: BSD-3-Clause
"""Sharding of a model over processes with FSDP2."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers.modeling_utils import PreTrainedModel

from ..distributed import mean_over_ranks


def shard_model(model: PreTrainedModel, **options: Any) -> PreTrainedModel:
    """Shards a model in place: one group of parameters for each layer, and one for the rest.

    accelerate would split parameters that several modules share, and scalars, which FSDP2 refuses. The momentum encoder
    has the layout of the encoders that it follows; the feature queue is replicated.

    Args:
        **options:
            Options of `torch.distributed.fsdp.fully_shard`, such as `mesh` and `offload_policy`.

    Returns:
        `PreTrainedModel`: `model`, whose parameters with at least one dimension are now `DTensor`s.
    """
    if isinstance(model, FSDPModule):
        return model
    scalars = {parameter for parameter in model.parameters() if parameter.dim() == 0}
    for layer in _independent_layers(model):
        fully_shard(layer, ignored_params=scalars, **options)
    # FSDP2 keeps the parameters of the root after forward; `reshard_after_forward` is about layers.
    root_options = {name: value for name, value in options.items() if name != "reshard_after_forward"}
    fully_shard(model, ignored_params=scalars, **root_options)
    for scalar in scalars:
        if scalar.requires_grad:
            scalar.register_post_accumulate_grad_hook(_average_gradient)
    return model


def _independent_layers(model: PreTrainedModel) -> Iterator[nn.Module]:
    """The layers that share no parameter with another layer, as encoder and decoder of pre-training do."""
    layers = [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]
    num_owners = Counter(parameter for layer in layers for parameter in layer.parameters())
    return (layer for layer in layers if all(num_owners[parameter] == 1 for parameter in layer.parameters()))


@torch.no_grad()
def _average_gradient(parameter: nn.Parameter) -> None:
    assert parameter.grad is not None  # called once it is accumulated
    parameter.grad.copy_(mean_over_ranks(parameter.grad))


__all__ = ["shard_model"]
