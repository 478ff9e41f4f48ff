# SPDX-License-Identifier: BSD-3-Clause
"""Reads and writes the files of original checkpoints."""

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..configuration_blip import BlipConfig
from ..files import atomic_write
from .names import unwrap_names


# Entries under which training scripts, Lightning and DeepSpeed save the tensors of a model.
_ENTRIES = ("model", "state_dict", "model_state_dict", "module")
# Fields that the outputs depend on and that shapes do not show. The original code ignores their entry.
_CONFIG_ENTRY = "blip_hf_config"
_CONFIG_FIELDS = ("num_attention_heads", "layer_norm_eps", "hidden_act")
_MAX_LISTED = 10

ConfigFields = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class OriginalFile:
    """The contents of an original checkpoint: its tensors, and fields of the configuration if this package wrote it."""

    tensors: dict[str, Tensor]
    config_fields: ConfigFields = field(default_factory=dict)


def read_original_file(path: str | os.PathLike[str]) -> OriginalFile:
    """Reads an original checkpoint without executing code from the file."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder. A folder of transformers needs no conversion: pass it to `from_pretrained`. Otherwise"
            " name the .pth in it, or add --to_original to write one."
        )
    contents = _load(path)
    config = contents.get(_CONFIG_ENTRY, {}) if isinstance(contents, Mapping) else {}
    fields = {
        part: {name: values[name] for name in _CONFIG_FIELDS if name in values} for part, values in config.items()
    }
    return OriginalFile(unwrap_names(_find_tensors(contents, path)), fields)


def write_original_file(path: Path, tensors: Mapping[str, Tensor], config: BlipConfig) -> None:
    """Writes tensors in the original format, with the fields of the configuration that shapes do not show."""
    fields = {
        part: {name: getattr(getattr(config, part), name) for name in _CONFIG_FIELDS}
        for part in ("vision_config", "text_config")
    }
    with atomic_write(path) as beside:
        torch.save({"model": dict(tensors), _CONFIG_ENTRY: fields}, beside)


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (UnpicklingError, EOFError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{path} cannot be read as tensors. Pass a .pth of tensors or a .safetensors file. If it holds other objects"
            " and you trust its source, load it with `torch.load(..., weights_only=False)` and save only its 'model'"
            " entry."
        ) from error


def _find_tensors(contents: Any, path: Path) -> Mapping[str, Tensor]:
    """Returns the state dict in the contents of a file, which may be under one of `_ENTRIES`."""
    entry = contents
    while isinstance(entry, Mapping) and (
        names := [name for name in _ENTRIES if isinstance(entry.get(name), Mapping)]
    ):
        entry = entry[names[0]]
    if isinstance(entry, Mapping) and entry and all(isinstance(value, Tensor) for value in entry.values()):
        return entry
    raise ValueError(
        f"{path} holds {_describe(entry)}, not a dict of tensors, alone or under {', '.join(map(repr, _ENTRIES))}. Save"
        " the state dict of the model under 'model'."
    )


def _describe(entry: Any) -> str:
    """The keys of a dict with the types of their values, or the type of another object."""
    if not isinstance(entry, Mapping):
        return f"an object of type {type(entry).__name__}"
    listed = [f"{key!r} ({type(value).__name__})" for key, value in list(entry.items())[:_MAX_LISTED]]
    more = f" and {len(entry) - _MAX_LISTED} more" if len(entry) > _MAX_LISTED else ""
    return f"the keys {', '.join(listed)}{more}" if listed else "an empty dict"


__all__ = ["ConfigFields", "OriginalFile", "read_original_file", "write_original_file"]
