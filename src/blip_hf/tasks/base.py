# SPDX-License-Identifier: BSD-3-Clause
"""Options and steps that the tasks share."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..checkpoints import require_checkpoint
from ..evaluation.defaults import BATCH_SIZE


if TYPE_CHECKING:
    from transformers.modeling_utils import PreTrainedModel

    from ..configuration_blip import BlipConfig
    from ..data.pairs import PairDataset
    from ..data.scenes import Scenes
    from ..processing_blip import BlipProcessor
    from ..training import BlipFinetuningArguments, BlipTrainer


logger = logging.getLogger(__name__)

SCENES = "scenes"
NUM_TRAINING_SCENES = 10_000
NUM_EVALUATION_SCENES = 500

_FILES_HELP = "annotation files, or `scenes` or `scenes:NUMBER` for drawn images"
_PAIRS_HELP = "any source of image-text pairs, or `scenes` or `scenes:NUMBER` for drawn images"
_SPLIT_HELP = "if it has several: a Karpathy file, a folder, a data set on the Hub"


@dataclass(frozen=True)
class Source:
    """Records to read: paths or names, or drawn scenes."""

    paths: list[str]
    num_scenes: int
    first_scene: int = 0
    split: str = "train"
    annotations: str | None = None

    @property
    def path_or_paths(self) -> str | list[str]:
        """A single path by itself, which may then be a folder or the name of a data set."""
        return self.paths[0] if len(self.paths) == 1 else self.paths

    def scenes(self, image_size: int) -> "Scenes | None":
        """The drawn scenes, or `None` for other sources. `scenes` alone stands for `num_scenes` of them."""
        if len(self.paths) != 1 or not _is_scenes(self.paths[0]):
            return None
        from ..data.readers.scenes import parse_scenes
        from ..data.scenes import Scenes

        (path,) = self.paths
        named = parse_scenes(f"{SCENES}:{self.num_scenes}" if path == SCENES else path)
        return Scenes(len(named), start=self.first_scene, image_size=image_size, noise_rate=named.noise_rate)


@dataclass(kw_only=True)
class TrainingOptions:
    """Options of pre-training and of every fine-tuning."""

    data: list[str] = field(metadata={"help": f"Training set: {_PAIRS_HELP}", "metavar": "SOURCE"})
    eval_data: list[str] | None = field(
        default=None, metadata={"help": "Set to evaluate on after training, as --data", "metavar": "SOURCE"}
    )
    image_root: str | None = field(
        default=None, metadata={"help": "Folder that relative image paths start from", "metavar": "DIR"}
    )
    augment: bool = field(default=True, metadata={"help": "Crop, flip and distort training images"})
    min_scale: float = field(
        default=0.5,
        metadata={"help": "Smallest fraction of an image that a random crop keeps", "metavar": "FRACTION"},
    )
    freeze_vision_layers: int = field(
        default=0, metadata={"help": "Number of first layers of the image encoder to freeze"}
    )
    num_scenes: int = field(
        default=NUM_TRAINING_SCENES, metadata={"help": "Number of drawn images of `--data scenes`"}
    )
    num_eval_scenes: int = field(
        default=NUM_EVALUATION_SCENES,
        metadata={"help": "Number of drawn images of `--eval_data scenes`; they follow those of training"},
    )

    def training_source(self) -> Source:
        """Where the training set is."""
        return Source(self.data, self.num_scenes)

    def evaluation_source(self) -> Source:
        """Where the set to evaluate on is; scenes follow those of training."""
        return Source(self.eval_data, self.num_eval_scenes, first_scene=self._num_training_scenes())

    def _num_training_scenes(self) -> int:
        from ..data.readers.scenes import parse_scenes

        numbered = [source for source in self.data if _is_scenes(source) and source != SCENES]
        return max((len(parse_scenes(source)) for source in numbered), default=self.num_scenes)


@dataclass(kw_only=True)
class BaseFinetuneOptions(TrainingOptions):
    """Options of every fine-tuning."""

    model: str = field(
        metadata={"help": "Checkpoint to start from: of the task or of BLIP's pre-training", "metavar": "CHECKPOINT"}
    )
    data: list[str] = field(metadata={"help": f"Training set: {_FILES_HELP}", "metavar": "SOURCE"})
    image_size: int | None = field(
        default=None,
        metadata={"help": "Image size in pixels; position embeddings are resized (default: that of the checkpoint)"},
    )
    drop_path: float | None = field(
        default=None,
        metadata={"help": "Drop-path rate of the image encoder (default: that of the checkpoint)", "metavar": "RATE"},
    )


@dataclass(kw_only=True)
class BaseEvaluateOptions:
    """Options of every evaluation."""

    model: str = field(metadata={"help": "Checkpoint with its processor", "metavar": "CHECKPOINT"})
    data: list[str] = field(metadata={"help": f"Set to evaluate on: {_FILES_HELP}", "metavar": "SOURCE"})
    image_root: str | None = field(
        default=None, metadata={"help": "Folder that relative image paths start from", "metavar": "DIR"}
    )
    batch_size: int = field(default=BATCH_SIZE, metadata={"help": "Records per batch"})
    device: str | None = field(
        default=None, metadata={"help": "Device to run on (default: the GPU if there is one)", "metavar": "DEVICE"}
    )
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Data type of the weights"}
    )
    num_scenes: int = field(
        default=NUM_EVALUATION_SCENES, metadata={"help": "Number of drawn images of `--data scenes`"}
    )
    first_scene: int = field(default=NUM_TRAINING_SCENES, metadata={"help": "Index of the first drawn image"})
    output: str | None = field(
        default=None, metadata={"help": "JSON file for the predictions of the model", "metavar": "FILE"}
    )
    no_progress: bool = field(default=False, metadata={"help": "Hide the progress bar"})

    def evaluation_source(self) -> Source:
        """Where the set to evaluate on is."""
        return Source(self.data, self.num_scenes, self.first_scene)


@dataclass(kw_only=True)
class PairFinetuneOptions(BaseFinetuneOptions):
    """Options of fine-tuning on image-text pairs."""

    data: list[str] = field(metadata={"help": f"Training set: {_PAIRS_HELP}", "metavar": "SOURCE"})
    split: str = field(default="train", metadata={"help": f"Split of --data, {_SPLIT_HELP}", "metavar": "SPLIT"})
    eval_split: str = field(default="val", metadata={"help": f"Split of --eval_data, {_SPLIT_HELP}", "metavar": "SPLIT"})

    def training_source(self) -> Source:
        """Where the training set is."""
        return replace(super().training_source(), split=self.split)

    def evaluation_source(self) -> Source:
        """Where the set to evaluate on is."""
        return replace(super().evaluation_source(), split=self.eval_split)


@dataclass(kw_only=True)
class PairEvaluateOptions(BaseEvaluateOptions):
    """Options of evaluation on image-text pairs."""

    data: list[str] = field(metadata={"help": f"Set to evaluate on: {_PAIRS_HELP}", "metavar": "SOURCE"})
    split: str = field(default="test", metadata={"help": f"Split of --data, {_SPLIT_HELP}", "metavar": "SPLIT"})

    def evaluation_source(self) -> Source:
        """Where the set to evaluate on is."""
        return replace(super().evaluation_source(), split=self.split)


@dataclass(frozen=True)
class FinetuningRun:
    """A finished fine-tuning, for the evaluation after it."""

    model: "PreTrainedModel"
    processor: "BlipProcessor"
    train_records: Sequence[Mapping[str, Any]]
    eval_records: Sequence[Mapping[str, Any]]
    batch_size: int


def run_finetuning(
    options: BaseFinetuneOptions,
    arguments: "BlipFinetuningArguments",
    *,
    load_model: Callable[[Any], "PreTrainedModel"],
    load_records: Callable[[Source, Any, int], Sequence[Mapping[str, Any]]],
    dataset_class: "type[PairDataset]",
    make_collator: Callable[["BlipProcessor"], Callable],
    evaluate: Callable[[FinetuningRun], Mapping[str, float]],
    set_up_processor: Callable[["BlipProcessor"], None] | None = None,
    transform_class: type | None = None,
    trainer_class: "type[BlipTrainer] | None" = None,
    export: Callable[["PreTrainedModel"], "PreTrainedModel"] | None = None,
    evaluates_on_all_processes: bool = False,
) -> dict[str, float]:
    """Fine-tunes a model, saves it with its processor, and evaluates it if there is `eval_data`.

    The arguments are the steps in which the tasks differ. `export` makes the model that is saved and evaluated from the
    one that was trained.
    """
    from ..data.transforms import TrainTransform
    from ..training import BlipTrainer

    warn_if_evaluated_on_training_data(options)
    model, processor = load_model(options), load_processor(options.model, options.image_size)
    if set_up_processor is not None:
        set_up_processor(processor)
    image_size = model.config.vision_config.image_size
    source = options.training_source()
    train_records = load_records(source, options, image_size)
    transform = None
    # Scenes are not augmented: crops and flips would change what their texts say.
    if options.augment and source.scenes(image_size) is None:
        transform = (transform_class or TrainTransform)(image_size, min_scale=options.min_scale)
    eval_records = None
    if options.eval_data is not None:
        eval_records = load_records(options.evaluation_source(), options, image_size)
    trainer = (trainer_class or BlipTrainer)(
        model,
        arguments,
        train_dataset=dataset_class(train_records, transform, seed=arguments.seed),
        eval_dataset=None if eval_records is None else dataset_class(eval_records),
        data_collator=make_collator(processor),
        processing_class=processor,
    )
    metrics = train_and_save(trainer)
    is_main_process = trainer.is_world_process_zero()
    if export is not None:
        model = export(model)
        if is_main_process:
            model.save_pretrained(arguments.output_dir)
    if eval_records is not None and (is_main_process or evaluates_on_all_processes):
        run = FinetuningRun(model, processor, train_records, eval_records, arguments.per_device_eval_batch_size)
        metrics |= {f"eval_{name}": value for name, value in evaluate(run).items()}
    return metrics


def train_and_save(trainer: "BlipTrainer") -> dict[str, float]:
    """Trains, or resumes if the arguments name a checkpoint; saves model, processor and log; returns the metrics."""
    metrics = trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint).metrics
    trainer.save_model()
    trainer.save_state()
    return metrics


def load_for_training(model_class: type, options: BaseFinetuneOptions, **fields: Any) -> "PreTrainedModel":
    """Loads a model in float32, with the drop-path rate of the options and further fields of its configuration."""
    import torch

    config = _read_config(model_class.config_class, options, **fields)
    return model_class.from_pretrained(options.model, config=config, dtype=torch.float32)


def prepare_for_training(model: "PreTrainedModel", options: BaseFinetuneOptions) -> "PreTrainedModel":
    """Resizes the position embeddings, freezes layers and sets training mode, as the options say."""
    if options.image_size is not None:
        model.resize_position_embeddings(options.image_size)
    model.vision_model.freeze_first_layers(options.freeze_vision_layers)
    return model.train()


def load_for_evaluation(model_class: type, options: BaseEvaluateOptions) -> "tuple[PreTrainedModel, BlipProcessor]":
    """Loads the model, on the device and with the data type of the options, and its processor."""
    import torch

    require_checkpoint(options.model)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = model_class.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).to(device)
    return model, load_processor(options.model)


def load_pair_records(
    source: Source, options: TrainingOptions | BaseEvaluateOptions, image_size: int
) -> Sequence[Mapping[str, Any]]:
    """Reads image-text pairs."""
    from ..data.readers import load_pairs

    scenes = source.scenes(image_size)
    if scenes is not None:
        return scenes
    return load_pairs(source.path_or_paths, image_root=options.image_root, split=source.split)


def load_processor(checkpoint: str, image_size: int | None = None) -> "BlipProcessor":
    """Loads the processor of a checkpoint, for another image size if one is given."""
    from ..processing_blip import BlipProcessor

    require_checkpoint(checkpoint)
    processor = BlipProcessor.from_pretrained(checkpoint)
    if image_size is not None:
        processor.image_processor.size = {"height": image_size, "width": image_size}
    return processor


def checkpoint_type(checkpoint: str) -> str:
    """The `model_type` of a checkpoint, which tells pre-training checkpoints from those of a task."""
    from transformers.utils import CONFIG_NAME, cached_file

    require_checkpoint(checkpoint)
    path = cached_file(checkpoint, CONFIG_NAME)
    return json.loads(Path(path).read_text(encoding="utf-8")).get("model_type", "")


def given_options(**values: Any) -> dict[str, Any]:
    """Drops values that are `None`, which stands for the default of the checkpoint or function."""
    return {name: value for name, value in values.items() if value is not None}


def warn_if_evaluated_on_training_data(options: BaseFinetuneOptions) -> None:
    """Warns if a source is both trained and evaluated on, unless two splits of it are."""
    from ..data.readers.records import first_character

    trained_on = set(map(os.path.realpath, options.data))
    evaluated_on = [source for source in options.eval_data or [] if not _is_scenes(source)]
    shared = [source for source in evaluated_on if os.path.realpath(source) in trained_on]
    if isinstance(options, PairFinetuneOptions) and options.split != options.eval_split:
        # A list has no splits.
        shared = [source for source in shared if source.endswith(".jsonl") or first_character(Path(source)) == "["]
    if shared:
        logger.warning(
            f"The model is evaluated on {', '.join(shared)}, which it is also trained on, so the metrics do not show how"
            " it does on new data. Remove it from `data` or from `eval_data`."
        )


def _is_scenes(source: str) -> bool:
    return source == SCENES or source.startswith(f"{SCENES}:")


def _read_config(config_class: "type[BlipConfig]", options: BaseFinetuneOptions, **fields: Any) -> "BlipConfig":
    require_checkpoint(options.model)
    config = config_class.from_pretrained(options.model, **fields)
    if options.drop_path is not None:
        config.vision_config.drop_path_rate = options.drop_path
    return config


__all__ = [
    "SCENES",
    "BaseEvaluateOptions",
    "BaseFinetuneOptions",
    "FinetuningRun",
    "PairEvaluateOptions",
    "PairFinetuneOptions",
    "Source",
    "TrainingOptions",
    "checkpoint_type",
    "given_options",
    "load_for_evaluation",
    "load_for_training",
    "load_pair_records",
    "load_processor",
    "prepare_for_training",
    "run_finetuning",
    "train_and_save",
    "warn_if_evaluated_on_training_data",
]
