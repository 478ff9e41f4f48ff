# SPDX-License-Identifier: BSD-3-Clause
"""Converts files of original checkpoints to folders for `from_pretrained`, and back."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertTokenizer, PreTrainedConfig

from ..caption_settings import PRETRAINING_SETTINGS
from ..configuration_blip import BlipConfig
from ..files import atomic_write
from ..modeling.base import BlipPreTrainedModel
from ..modeling.momentum import MOMENTUM_STATE_NAME
from ..modeling.pretraining import BlipForPreTraining
from ..processing_blip import BlipProcessor
from .kinds import KINDS, find_kind, infer_config, infer_image_size
from .names import (
    MOMENTUM_PREFIX,
    QUEUE_PREFIX,
    convert_original_state_dict,
    map_original_names,
    restore_original_state_dict,
)
from .original_file import read_original_file, write_original_file


DEFAULT_TOKENIZER = "bert-base-uncased"
_STATE_PREFIXES = (MOMENTUM_PREFIX, QUEUE_PREFIX)
_STATE_REASON = "only for training; --training_state keeps it"


@dataclass(frozen=True)
class Conversion:
    """Summary of a conversion.

    Args:
        model_class (`str`):
            Class of the model.
        image_size (`int`):
            Image size in pixels.
        num_tensors (`int`):
            Number of converted tensors.
        dropped (`dict[str, str]`):
            Names of tensors that were not converted, with reasons.
    """

    model_class: str
    image_size: int
    num_tensors: int
    dropped: dict[str, str] = field(default_factory=dict)


def convert_original_checkpoint(
    path: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] = DEFAULT_TOKENIZER,
    keep_training_state: bool = False,
    save_parts: bool = False,
    head_width: int | None = None,
) -> Conversion:
    """Converts an original checkpoint of any task to a folder with a model and its processor.

    Task and sizes are inferred from the names and shapes of the tensors; the image size stays that of the file. Tensors are
    copied bit by bit, or listed in `dropped`.

    Args:
        path (`str` or `os.PathLike`):
            A `.pth` of salesforce/BLIP or LAVIS, or the same tensors as `.safetensors`. The tensors may be under `model`,
            `state_dict`, `model_state_dict` or `module`, and their names may start with `module.` (DistributedDataParallel) or
            `_orig_mod.` (`torch.compile`).
        out_dir (`str` or `os.PathLike`):
            Folder to create. It appears once it is complete.
        tokenizer (`str` or `os.PathLike`, *optional*, defaults to `"bert-base-uncased"`):
            Folder (with at least `vocab.txt`) or Hub id of the BERT tokenizer that the model was trained with.
        keep_training_state (`bool`, *optional*, defaults to `False`):
            Whether to keep momentum encoder and queue of a pre-training or retrieval checkpoint, in the file that
            `BlipContrastiveTrainer` saves. A retrieval checkpoint then becomes a `BlipForRetrievalTraining` instead of a
            `BlipForImageTextRetrieval`.
        save_parts (`bool`, *optional*, defaults to `False`):
            Whether to also save the models inside a pre-training checkpoint, in `captioner/` and `retriever/`.
        head_width (`int`, *optional*):
            Width of an attention head, which weights do not determine. Defaults to that of the file if
            [`restore_original_checkpoint`] wrote it, else to 64 for transformers of width 768 or 1024, as in all released
            models. Required for other widths.

    Returns:
        `Conversion`: Class of the model, and dropped tensors.

    Raises:
        ValueError: If the file holds no tensors, its tensors fit no task, the number of heads is unknown, the tokenizer cannot be
            loaded or does not fit, or the folder is not empty.
    """
    path, out_dir = Path(path), Path(out_dir).absolute()
    _refuse_full_folder(out_dir)
    file = read_original_file(path)
    original = file.tensors
    mapped, dropped = map_original_names(original)
    kind = find_kind(mapped.values())
    model_class = kind.training_class if keep_training_state else kind.model_class
    if model_class is None or (keep_training_state and "temp" not in mapped):
        raise ValueError(f"{path} is a {kind.task} checkpoint without training state. Remove --training_state.")
    if save_parts and kind.model_class is not BlipForPreTraining:
        raise ValueError(f"{path} is a {kind.task} checkpoint, not a pre-training one. Remove --parts.")
    state = convert_original_state_dict(original)
    processor = _load_processor(tokenizer, infer_image_size(state))
    config_class = model_class.config_class
    assert issubclass(config_class, BlipConfig)
    config = infer_config(
        state,
        kind,
        config_class,
        token_ids=processor.config_token_ids(),
        head_width=head_width,
        config_fields=file.config_fields,
    )
    with torch.device("meta"):
        model = model_class(config)
    kept = _without_training_state(state, model, keep_training_state)
    dropped |= {name: _STATE_REASON for name, new_name in mapped.items() if new_name not in kept}
    _fill(model, kept)
    with atomic_write(out_dir) as folder:
        _save(model, processor, folder)
        if keep_training_state:
            _save_training_state(kept, folder)
        if isinstance(model, BlipForPreTraining) and save_parts:
            processor.caption_settings = PRETRAINING_SETTINGS
            _save(model.export_captioner(), processor, folder / "captioner")
            _save(model.export_retriever(), processor, folder / "retriever")
    return Conversion(model_class.__name__, infer_image_size(state), len(original) - len(dropped), dropped)


def restore_original_checkpoint(
    pretrained_model_name_or_path: str | os.PathLike[str], path: str | os.PathLike[str]
) -> Conversion:
    """Writes a model in the original format: the exact inverse of `convert_original_checkpoint`.

    Args:
        pretrained_model_name_or_path (`str` or `os.PathLike`):
            Folder or Hub id of a BLIP model, saved by this package or by transformers. Includes momentum encoder and queue
            if the folder holds them, as checkpoints of `BlipContrastiveTrainer` do.
        path (`str` or `os.PathLike`):
            The `.pth` file to write: a dict with the tensors in `model`, and in `blip_hf_config` the number of heads and
            other fields that shapes do not show, which the original code ignores.

    Returns:
        `Conversion`: Class of the model, and dropped tensors.

    Raises:
        ValueError: If the original code has no model of this class.
    """
    path = Path(path).absolute()
    model = _class_of(pretrained_model_name_or_path).from_pretrained(pretrained_model_name_or_path)
    # Without their file, the momentum encoder and the queue are untrained.
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(_STATE_PREFIXES)}
    state |= _load_training_state(Path(pretrained_model_name_or_path))
    original = restore_original_state_dict(state)
    dropped = {}
    if "queue.image_ids" in state and "idx_queue" not in original:
        dropped["queue.image_ids"] = "the original stores no image ids in pre-training"
    write_original_file(path, original, model.config)
    image_size = model.config.vision_config.image_size
    return Conversion(type(model).__name__, image_size, len(state) - len(dropped), dropped)


def _load_processor(tokenizer: str | os.PathLike[str], image_size: int) -> BlipProcessor:
    try:
        if (Path(tokenizer) / "vocab.txt").is_file():  # AutoTokenizer does not read this file alone
            tokenizer = BertTokenizer.from_pretrained(tokenizer)
        return BlipProcessor.from_bert_tokenizer(tokenizer, image_size=image_size)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(" .:")
        raise ValueError(
            f"The tokenizer {tokenizer} cannot be loaded ({reason}). Pass a folder with the tokenizer of bert-base-uncased"
            " with --tokenizer (`tokenizer=`), or connect to the Hub."
        ) from error


def _without_training_state(
    state: Mapping[str, Tensor], model: BlipPreTrainedModel, keep_training_state: bool
) -> dict[str, Tensor]:
    """Removes momentum encoder and queue unless kept, and a temperature that the model does not have."""
    expected = model.state_dict()
    return {
        name: value
        for name, value in state.items()
        if (keep_training_state or not name.startswith(_STATE_PREFIXES)) and (name != "temp" or name in expected)
    }


def _fill(model: BlipPreTrainedModel, state: dict[str, Tensor]) -> None:
    """Assigns all tensors to a model on the meta device."""
    for alias, source in model.all_tied_weights_keys.items():
        # A file may store a shared tensor once.
        present = state.get(source, state.get(alias))
        if present is not None:
            state.setdefault(source, present)
            state.setdefault(alias, present)
            if not torch.equal(state[alias], state[source]):
                raise ValueError(f"{alias} and {source} (our names) differ, but BLIP shares one tensor.")
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    # LAVIS checkpoints have no momentum encoder.
    optional = tuple(prefix for prefix in _STATE_PREFIXES if not any(name.startswith(prefix) for name in state))
    missing = [name for name in shapes if name not in state and not name.startswith(optional)]
    surplus = [name for name in state if name not in shapes]
    misfits = [name for name in shapes.keys() & state if shapes[name] != tuple(state[name].shape)]
    for problem, names in (("lacks", missing), ("has no place for", surplus), ("has another shape for", misfits)):
        if names:
            raise ValueError(
                f"The checkpoint does not fit {type(model).__name__}, which {problem} {', '.join(sorted(names)[:10])}"
            )
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()


def _save(model: BlipPreTrainedModel, processor: BlipProcessor, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _save_training_state(state: Mapping[str, Tensor], folder: Path) -> None:
    tensors = {name: value for name, value in state.items() if name.startswith(_STATE_PREFIXES)}
    save_file(tensors, folder / MOMENTUM_STATE_NAME, metadata={"format": "pt"})


def _load_training_state(folder: Path) -> dict[str, Tensor]:
    path = folder / MOMENTUM_STATE_NAME
    return load_file(path) if path.is_file() else {}


def _class_of(pretrained_model_name_or_path: str | os.PathLike[str]) -> type[BlipPreTrainedModel]:
    config, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path)
    names = config.get("architectures") or ["no class"]
    classes = {known.__name__: known for kind in KINDS for known in (kind.model_class, kind.training_class) if known}
    if names[0] not in classes:
        raise ValueError(
            f"{pretrained_model_name_or_path} holds {names[0]}, which has no original format. Pass a model of class"
            f" {', '.join(classes)}."
        )
    return classes[names[0]]


def _refuse_full_folder(path: Path) -> None:
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ValueError(f"{path} exists and is not empty. Pass a new folder, or remove this one.")


__all__ = [
    "DEFAULT_TOKENIZER",
    "Conversion",
    "convert_original_checkpoint",
    "restore_original_checkpoint",
]
