# SPDX-License-Identifier: BSD-3-Clause
"""Training checkpoints of sharded and of whole models, each read by runs of both kinds.

A run with FSDP2 writes folders of `torch.distributed.checkpoint` with the state of model (including the momentum encoder and
the queue) and optimizer by name. Other runs write `model.safetensors` and `optimizer.pt`, which numbers the parameters.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer


# Folders and files of accelerate (1.15) and transformers (5.23).
_MODEL_FOLDER, _OPTIMIZER_FOLDER = "pytorch_model_fsdp_0", "optimizer_0"
_MODEL_FILE, _OPTIMIZER_FILE = "model.safetensors", "optimizer.pt"


def is_sharded(checkpoint: str | os.PathLike[str]) -> bool:
    """Whether a run with FSDP2 wrote a checkpoint."""
    return Path(checkpoint, _MODEL_FOLDER).is_dir()


def has_whole_weights(checkpoint: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint has all weights in one file."""
    return Path(checkpoint, _MODEL_FILE).is_file()


def load_sharded_weights(model: nn.Module, checkpoint: str | os.PathLike[str]) -> None:
    """Loads a checkpoint of FSDP2 into a whole model."""
    model.load_state_dict(_read_folder(Path(checkpoint, _MODEL_FOLDER))["model"])


def load_whole_weights(model: nn.Module, file: str | os.PathLike[str]) -> None:
    """Loads a safetensors file with some or all weights into a model, sharded or not."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(model, load_file(file), options=StateDictOptions(full_state_dict=True, strict=False))


def load_optimizer(model: nn.Module, optimizer: Optimizer, checkpoint: str | os.PathLike[str]) -> None:
    """Loads the optimizer state of a whole checkpoint for a sharded model, or of a sharded one for a whole model."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    if is_sharded(checkpoint):
        state = _read_folder(Path(checkpoint, _OPTIMIZER_FOLDER))["optimizer"]
    else:
        numbered = torch.load(Path(checkpoint, _OPTIMIZER_FILE), map_location="cpu", weights_only=True)
        state = _by_name(numbered, model, optimizer)
    if not state["state"]:
        return  # such as SGD without momentum
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))


def whole_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """State dict of a sharded model with whole tensors, on each process."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


def _read_folder(folder: Path) -> dict[str, Any]:
    """Reads a folder of `torch.distributed.checkpoint` into whole tensors, on any number of processes."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, "whole.pt")
        dcp_to_torch_save(folder, file)
        return torch.load(file, map_location="cpu", weights_only=True)


def _by_name(numbered: dict[str, Any], model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Replaces the numbers of parameters in the state of an optimizer, by order, by their names."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    groups = [{**group, "params": [order[i] for i in group["params"]]} for group in numbered["param_groups"]]
    return {"state": {order[i]: state for i, state in numbered["state"].items()}, "param_groups": groups}


__all__ = [
    "has_whole_weights",
    "is_sharded",
    "load_optimizer",
    "load_sharded_weights",
    "load_whole_weights",
    "whole_state_dict",
]
