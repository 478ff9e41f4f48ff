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

    state: dict[str, Any] = {**load_file(file)}
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, strict=False))


def load_optimizer(model: nn.Module, optimizer: Optimizer, checkpoint: str | os.PathLike[str]) -> None:
    """Loads the optimizer state of a whole checkpoint for a sharded model, or of a sharded one for a whole model."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    if is_sharded(checkpoint):
        named = _read_folder(Path(checkpoint, _OPTIMIZER_FOLDER))["optimizer"]
        optimizer.load_state_dict(_by_number(named, order, optimizer.state_dict()["param_groups"]))
        return
    numbered = torch.load(Path(checkpoint, _OPTIMIZER_FILE), map_location="cpu", weights_only=True)
    if numbered["state"]:  # SGD without momentum has none
        named = _by_name(numbered, order)
        set_optimizer_state_dict(model, optimizer, named, options=StateDictOptions(full_state_dict=True))


def whole_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """State dict of a sharded model with whole tensors, on each process."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state: dict[str, Any] = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    return state


def _read_folder(folder: Path) -> dict[str, Any]:
    """Reads a folder of `torch.distributed.checkpoint` into whole tensors, on any number of processes."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, "whole.pt")
        dcp_to_torch_save(folder, file)
        return torch.load(file, map_location="cpu", weights_only=True)


def _by_number(named: dict[str, Any], order: list[str], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Replaces the names of parameters in the state of an optimizer by their positions in `order`."""
    saved = {name: group for group in named["param_groups"] for name in group["params"]}
    groups = [
        {**saved[order[group["params"][0]]], "params": group["params"]} if group["params"] else group
        for group in groups
    ]
    numbers = {name: i for i, name in enumerate(order)}
    return {"state": {numbers[name]: state for name, state in named["state"].items()}, "param_groups": groups}


def _by_name(numbered: dict[str, Any], order: list[str]) -> dict[str, Any]:
    """Replaces the numbers of parameters in the state of an optimizer by their names in `order`."""
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
