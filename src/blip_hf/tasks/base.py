# SPDX-License-Identifier: BSD-3-Clause
"""What the tasks share: checkpoints to start from, pairs, one course of training, and results in files."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import CONFIG_NAME, cached_file, logging

from ..checkpoints import require_checkpoint
from ..configuration_blip import BlipConfig
from ..data.pairs import PairDataset
from ..data.readers import load_pairs
from ..data.readers.records import first_character
from ..data.scenes import Scenes
from ..data.transforms import TrainTransform
from ..processing_blip import BlipProcessor
from ..training import BlipTrainer
from .options import SCENES, EvaluateOptions, FinetuneOptions, PairEvaluateOptions, PairFinetuneOptions


logger = logging.get_logger(__name__)

DTYPES = ("float32", "bfloat16", "float16")


def checkpoint_type(source: str) -> str:
    """The `model_type` of a checkpoint, which tells a pre-training one from those of tasks.

    Args:
        source (`str`):
            The checkpoint.

    Returns:
        `str`: as its `config.json` has it.
    """
    require_checkpoint(source)
    path = cached_file(source, CONFIG_NAME)
    return json.loads(Path(path).read_text(encoding="utf-8")).get("model_type", "")


def prepare_for_training(model: PreTrainedModel, options: FinetuneOptions) -> PreTrainedModel:
    """Puts a model to train in training mode, at the image size and with the frozen layers of the options.

    Args:
        model (`PreTrainedModel`):
            A loaded model, with float32 weights.
        options (`FinetuneOptions`):
            Options of the command.

    Returns:
        `PreTrainedModel`: the same.

    Raises:
        ValueError: If there are fewer layers than are to be frozen.
    """
    if options.image_size is not None:
        model.resize_position_embeddings(options.image_size)
    model.vision_model.freeze_first_layers(options.freeze_vision_layers)
    return model.train()


def read_config(config_class: type[BlipConfig], options: FinetuneOptions, **fields: Any) -> BlipConfig:
    """Reads a checkpoint's configuration, with the drop-path rate of the options.

    Args:
        config_class (`type`):
            Class of the configuration.
        options (`FinetuneOptions`):
            Options of the command.
        **fields:
            Further fields to set.

    Returns:
        `BlipConfig`: the configuration.
    """
    require_checkpoint(options.model)
    config = config_class.from_pretrained(options.model, **fields)
    if options.drop_path is not None:
        config.vision_config.drop_path_rate = options.drop_path
    return config


def load_processor(source: str, image_size: int | None = None) -> BlipProcessor:
    """Loads a checkpoint's processor, for images of another size where one is given.

    Args:
        source (`str`):
            The checkpoint.
        image_size (`int`, *optional*):
            Side of the images in pixels.

    Returns:
        `BlipProcessor`: the processor.
    """
    require_checkpoint(source)
    processor = BlipProcessor.from_pretrained(source)
    if image_size is not None:
        processor.image_processor.size = {"height": image_size, "width": image_size}
    return processor


def image_size_of(model: PreTrainedModel) -> int:
    """Side in pixels of the images that a model takes."""
    return model.config.vision_config.image_size


def training_pairs(options: PairFinetuneOptions, image_size: int, seed: int) -> PairDataset:
    """Reads the pairs to train on; drawn images are taken as they are.

    Args:
        options (`PairFinetuneOptions`):
            Options of the command.
        image_size (`int`):
            Side of the images in pixels.
        seed (`int`):
            Seed of the augmentation.

    Returns:
        `PairDataset`: the pairs.
    """
    if options.data == [SCENES]:
        return PairDataset(training_scenes(options, image_size))
    pairs = load_pairs(one_or_several(options.data), image_root=options.image_root, split=options.split)
    return PairDataset(pairs, training_transform(options, image_size), seed=seed)


def training_scenes(options: FinetuneOptions, image_size: int) -> Scenes:
    """Drawn images to train on."""
    return Scenes(options.num_scenes, image_size=image_size)


def training_transform(options: FinetuneOptions, image_size: int) -> TrainTransform | None:
    """The augmentation that the options ask for."""
    return TrainTransform(image_size, min_scale=options.min_scale) if options.augment else None


def evaluation_pairs(options: PairFinetuneOptions | PairEvaluateOptions, image_size: int) -> Any:
    """Reads the pairs to evaluate on.

    Args:
        options (`PairFinetuneOptions` or `PairEvaluateOptions`):
            Options of the command.
        image_size (`int`):
            Side of drawn images in pixels.

    Returns:
        `datasets.Dataset` or `Scenes`: records of pairs.
    """
    source = evaluation_source(options)
    if source == [SCENES]:
        return evaluation_scenes(options, image_size)
    split = options.eval_split if isinstance(options, PairFinetuneOptions) else options.split
    return load_pairs(one_or_several(source), image_root=options.image_root, split=split)


def evaluation_source(options: FinetuneOptions | EvaluateOptions) -> list[str]:
    """What to evaluate on."""
    return options.eval_data if isinstance(options, FinetuneOptions) else options.data


def warn_of_training_data(options: FinetuneOptions) -> None:
    """Warns of sources to evaluate on that are trained on too.

    A source that has splits may be both, one split of it each; a list has none.

    Args:
        options (`FinetuneOptions`):
            Options of the command, with a set to evaluate on.
    """
    trained_on = set(map(os.path.realpath, options.data))
    shared = [source for source in options.eval_data if source != SCENES and os.path.realpath(source) in trained_on]
    if isinstance(options, PairFinetuneOptions) and options.split != options.eval_split:
        shared = [source for source in shared if source.endswith(".jsonl") or first_character(Path(source)) == "["]
    if shared:
        logger.warning(
            f"The model is evaluated on {', '.join(shared)}, which it is trained on too, so that the figures say nothing"
            " of other data. Leave it out of `data` or of `eval_data`."
        )


def evaluation_scenes(options: FinetuneOptions | EvaluateOptions, image_size: int) -> Scenes:
    """Drawn images to evaluate on: behind those of training, or those that an evaluation names."""
    if isinstance(options, FinetuneOptions):
        return Scenes(options.num_eval_scenes, start=options.num_scenes, image_size=image_size)
    return Scenes(options.num_scenes, start=options.first_scene, image_size=image_size)


def one_or_several(sources: Sequence[str]) -> str | list[str]:
    """A single source as itself, which may then be a folder or a name."""
    return sources[0] if len(sources) == 1 else list(sources)


def train_and_save(trainer: BlipTrainer) -> dict[str, float]:
    """Trains, goes on from a checkpoint where the arguments name one, and saves model, processor and log.

    Args:
        trainer (`BlipTrainer`):
            The trainer.

    Returns:
        `dict[str, float]`: metrics of the training.
    """
    metrics = trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint).metrics
    trainer.save_model()
    trainer.save_state()
    return metrics


def load_for_evaluation(model_class: type, options: EvaluateOptions) -> tuple[PreTrainedModel, BlipProcessor]:
    """Loads the model and the processor that an evaluation names, on its device.

    Args:
        model_class (`type`):
            Class of the model.
        options (`EvaluateOptions`):
            Options of the command.

    Returns:
        `tuple`: the model in evaluation mode, and the processor.

    Raises:
        ValueError: If the type of the weights is unknown, or the checkpoint is of another class.
    """
    if options.dtype not in DTYPES:
        raise ValueError(f"dtype is {options.dtype!r}, expected one of {', '.join(DTYPES)}.")
    require_checkpoint(options.model)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = model_class.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).to(device)
    return model, load_processor(options.model)


def prefixed(metrics: Mapping[str, float], prefix: str = "eval_") -> dict[str, float]:
    """Metrics under names that tell them from those of training."""
    return {f"{prefix}{name}": value for name, value in metrics.items()}


__all__ = [
    "checkpoint_type",
    "evaluation_pairs",
    "evaluation_scenes",
    "evaluation_source",
    "image_size_of",
    "load_for_evaluation",
    "load_processor",
    "one_or_several",
    "prefixed",
    "prepare_for_training",
    "read_config",
    "train_and_save",
    "training_pairs",
    "training_scenes",
    "training_transform",
    "warn_of_training_data",
]
