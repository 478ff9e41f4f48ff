# SPDX-License-Identifier: BSD-3-Clause
"""The model of a trainer: the one inside a wrapper of peft, and the data type of its weights."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def base_model(model: nn.Module) -> PreTrainedModel:
    """The model inside a wrapper of peft, or the model itself."""
    wrapper: Any = model
    return model if isinstance(model, PreTrainedModel) else wrapper.get_base_model()


def check_precision(model: nn.Module) -> None:
    """Raises a `ValueError` for trained weights that are not float32."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise ValueError(
                f"{name} is {parameter.dtype}, expected torch.float32: half precision rounds small"
                " updates to zero. Load the model with `dtype=torch.float32` and pass `bf16=True` in the arguments."
            )


__all__ = ["base_model", "check_precision"]
