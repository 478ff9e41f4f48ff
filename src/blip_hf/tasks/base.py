# SPDX-License-Identifier: BSD-3-Clause
"""What the tasks share: the bases of their options, and checkpoints. `finetuning.py` has the course of a fine-tuning.

A task module has `FinetuneOptions`, `EvaluateOptions`, `finetune` and `evaluate`. Task modules import heavy libraries inside
functions, so that `--help` is quick.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, get_args

from ..evaluation.defaults import BATCH_SIZE
from .lora import LoraOptions
from .options import option
from .source import Source, count_scenes
from .streams import StreamOptions


if TYPE_CHECKING:
    from ..configuration_blip import BlipConfig
    from ..modeling.base import BlipPreTrainedModel
    from ..processing_blip import BlipProcessor

    _Model = TypeVar("_Model", bound=BlipPreTrainedModel)


FILES_HELP = "annotation file(s), published or in BLIP's form, or `scenes` or `scenes:NUMBER` for drawn images"
PAIRS_HELP = "file(s), a folder, tars, Parquet (also at s3:// and other addresses), a data set name, or `scenes` or `scenes:NUMBER` for drawn images; see docs/data.md"
GATHER_KEYS_HELP = (
    "Contrast with the batches of all processes and the queue; False: the own batch and the queue, as salesforce/BLIP"
    " (default: True)"
)
NEGATIVE_ALL_RANK_HELP = "Draw hard negatives from all processes, as salesforce/BLIP for COCO (default: False)"
SPLIT_HELP = "for a source with several: a file of Karpathy, a folder, a data set"
ALLOW_OUTSIDE_HELP = "Open images outside the folder of their list, or outside --image_root"
DType = Literal["float32", "bfloat16", "float16"]


@dataclass(kw_only=True)
class TrainingOptions:
    """Options of every training: its data, and how they are augmented."""

    data: list[str] = field(metadata={"help": f"Training set: {PAIRS_HELP}", "metavar": "SOURCE"})
    eval_data: list[str] | None = option(None, "Set to evaluate on after training, as --data", "SOURCE")
    image_root: str | None = option(None, "Folder that relative image paths start from", "DIR")
    allow_outside: bool = option(False, ALLOW_OUTSIDE_HELP)
    augment: bool = option(True, "Crop, flip and warp the training images")
    min_scale: float = option(0.5, "Minimum share of an image's area in a random crop (salesforce/BLIP)", "SHARE")
    freeze_vision_layers: int = option(0, "Number of first layers of the image encoder to freeze", "N")
    num_scenes: int = option(10_000, "Number of scenes to train on", "N")
    num_eval_scenes: int = option(500, "Number of further scenes to evaluate on", "N")
    overwrite: bool = option(
        False, "Start again in a folder that is not empty, and remove the checkpoints of the run there"
    )
    dry_run: bool = option(
        False, "Print the counts and first records of the data, the steps and an estimate of the memory, and stop"
    )

    def training_source(self) -> Source:
        """Returns the source of the training set."""
        return Source(self.data, self.image_root, 0, self.num_scenes, allow_outside=self.allow_outside)

    def evaluation_source(self) -> Source | None:
        """Returns the source of the evaluation set, if there is one. Its scenes follow those of training."""
        if self.eval_data is None:
            return None
        first_scene = count_scenes(self.data, self.num_scenes)
        return Source(
            self.eval_data, self.image_root, first_scene, self.num_eval_scenes, allow_outside=self.allow_outside
        )


@dataclass(kw_only=True)
class PairTrainingOptions(StreamOptions, TrainingOptions):
    """Options of training on image-text pairs, which come from more sources and may have splits."""

    split: str = option("train", f"Split of --data, {SPLIT_HELP}", "NAME")
    eval_split: str = option("val", f"Split of --eval_data, {SPLIT_HELP}", "NAME")

    def training_source(self) -> Source:
        """Returns the source of the training set."""
        return replace(super().training_source(), split=self.split)

    def evaluation_source(self) -> Source | None:
        """Returns the source of the evaluation set, if there is one."""
        source = super().evaluation_source()
        return None if source is None else replace(source, split=self.eval_split)


@dataclass(kw_only=True)
class FinetuneOptions(LoraOptions, TrainingOptions):
    """Options of every fine-tuning."""

    model: str = field(
        metadata={
            "help": "Checkpoint with its processor to start from: of the task or of pre-training",
            "metavar": "CHECKPOINT",
        }
    )
    data: list[str] = field(metadata={"help": f"Training set: {FILES_HELP}", "metavar": "SOURCE"})
    image_size: int | None = option(
        None, "Image size in pixels; position embeddings are interpolated (default: the checkpoint's)", "N"
    )
    drop_path: float | None = option(None, "Drop-path rate of the image encoder (default: the checkpoint's)", "RATE")


@dataclass(kw_only=True)
class PairFinetuneOptions(PairTrainingOptions, FinetuneOptions):
    """Options of fine-tuning on image-text pairs."""

    data: list[str] = field(metadata={"help": f"Training set: {PAIRS_HELP}", "metavar": "SOURCE"})


@dataclass(kw_only=True)
class EvaluateOptions:
    """Options of every evaluation."""

    model: str = field(metadata={"help": "Checkpoint with its processor", "metavar": "CHECKPOINT"})
    data: list[str] = field(metadata={"help": f"Set to evaluate on: {FILES_HELP}", "metavar": "SOURCE"})
    image_root: str | None = option(None, "Folder that relative image paths start from", "DIR")
    allow_outside: bool = option(False, ALLOW_OUTSIDE_HELP)
    batch_size: int = option(BATCH_SIZE, "Images of a batch", "N")
    workers: int = field(
        default=0,
        metadata={"help": "Threads or processes that read images ahead; 0 for none", "aliases": ["num_workers"]},
    )
    device: str | None = option(
        None, "Device, such as cpu or cuda:1 (default: an accelerator, if there is one)", "DEVICE"
    )
    dtype: DType = option("float32", "Data type of the weights")
    first_scene: int = option(10_000, "Number of the first scene", "N")
    num_scenes: int = option(500, "Number of scenes", "N")
    output: str | None = option(None, "File for the model's predictions, one per record", "FILE")
    no_progress: bool = option(False, "Show no progress bar")

    def evaluation_source(self) -> Source:
        """Returns the source of the evaluation set."""
        return Source(self.data, self.image_root, self.first_scene, self.num_scenes, allow_outside=self.allow_outside)


@dataclass(kw_only=True)
class PairEvaluateOptions(EvaluateOptions):
    """Options of an evaluation on image-text pairs."""

    data: list[str] = field(metadata={"help": f"Set to evaluate on: {PAIRS_HELP}", "metavar": "SOURCE"})
    split: str = option("test", f"Split of --data, {SPLIT_HELP}", "NAME")

    def evaluation_source(self) -> Source:
        """Returns the source of the evaluation set."""
        return replace(super().evaluation_source(), split=self.split)


# Checkpoints


class LoadingOptions(Protocol):
    """Options that name a model to evaluate."""

    model: str
    device: str | None

    @property
    def dtype(self) -> DType:
        """Data type of the weights."""


def checkpoint_type(source: str) -> str:
    """Returns the `model_type` of a checkpoint, which tells a pre-training one from those of tasks."""
    from transformers.utils import CONFIG_NAME, cached_file

    from ..checkpoints import require_checkpoint

    require_checkpoint(source)
    path = cached_file(source, CONFIG_NAME)
    assert path is not None  # it raises for a missing file
    return json.loads(Path(path).read_text(encoding="utf-8")).get("model_type", "")


def read_config(config_class: Any, options: FinetuneOptions, **fields: Any) -> "BlipConfig":
    """Reads a checkpoint's configuration, with the drop-path rate of the options and the given fields."""
    from ..checkpoints import require_checkpoint

    require_checkpoint(options.model)
    config = config_class.from_pretrained(options.model, **fields)
    if options.drop_path is not None:
        config.vision_config.drop_path_rate = options.drop_path
    return config


def config_values(config_class: type["BlipConfig"], options: object, names: tuple[str, ...]) -> dict[str, Any]:
    """Returns options that are fields of a configuration; its own defaults, not a checkpoint's values, where not given."""
    given = {name: getattr(options, name) for name in names}
    defaults = config_class.__dataclass_fields__
    return {name: defaults[name].default if value is None else value for name, value in given.items()}


def load_for_training(model_class: "type[BlipPreTrainedModel]", options: FinetuneOptions, **fields: Any) -> Any:
    """Loads a model with float32 weights, the drop-path rate of the options, and the given fields of its configuration."""
    import torch

    config = read_config(model_class.config_class, options, **fields)
    return model_class.from_pretrained(options.model, config=config, dtype=torch.float32)


def prepare_for_training(model: "_Model", options: FinetuneOptions) -> "_Model":
    """Sets the image size, freezes layers, and switches the model to training mode."""
    if options.image_size is not None:
        model.resize_position_embeddings(options.image_size)
    vision_model: Any = model.vision_model
    vision_model.freeze_first_layers(options.freeze_vision_layers)
    return model.train()


def load_processor(source: str, image_size: int | None = None) -> "BlipProcessor":
    """Loads a checkpoint's processor, for images of another size if one is given."""
    from ..checkpoints import require_checkpoint
    from ..processing_blip import BlipProcessor

    require_checkpoint(source)
    processor = BlipProcessor.from_pretrained(source)
    if image_size is not None:
        processor.image_processor.size = {"height": image_size, "width": image_size}
    return processor


def load_for_evaluation(model_class: "type[_Model]", options: LoadingOptions) -> tuple["_Model", "BlipProcessor"]:
    """Loads the model and the processor to evaluate, on their device.

    Raises:
        ValueError: If the data type is unknown, or the checkpoint belongs to another class.
    """
    import torch

    from ..checkpoints import require_checkpoint
    from ..devices import pick_device
    from ..modeling.cpu import optimize_for_cpu

    if options.dtype not in get_args(DType):
        raise ValueError(f"dtype={options.dtype!r} is unknown. Pass one of {', '.join(get_args(DType))}.")
    require_checkpoint(options.model)
    device = pick_device(options.device)
    model = model_class.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).to(device)
    if device.type == "cpu":
        optimize_for_cpu(model)
    return model.eval(), load_processor(options.model)


def image_size_of(model: "BlipPreTrainedModel") -> int:
    """Returns the image size of a model in pixels."""
    return model.config.vision_config.image_size


__all__ = [
    "FILES_HELP",
    "GATHER_KEYS_HELP",
    "NEGATIVE_ALL_RANK_HELP",
    "PAIRS_HELP",
    "SPLIT_HELP",
    "DType",
    "EvaluateOptions",
    "FinetuneOptions",
    "PairEvaluateOptions",
    "PairFinetuneOptions",
    "PairTrainingOptions",
    "TrainingOptions",
    "checkpoint_type",
    "config_values",
    "image_size_of",
    "load_for_evaluation",
    "load_for_training",
    "load_processor",
    "option",
    "prepare_for_training",
    "read_config",
]
