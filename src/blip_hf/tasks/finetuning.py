# SPDX-License-Identifier: BSD-3-Clause
"""The course of a fine-tuning, which all tasks share: data, trainer, saved model and evaluation."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import FinetuneOptions, PairTrainingOptions, TrainingOptions, image_size_of
from .loading import add_loading_skips, loading_counts
from .lora import add_adapters, check_lora, save_adapter
from .run_card import push_run, write_run_cards
from .run_folder import finish_run, prepare_run, start_run
from .source import Source, is_scenes
from .streams import make_stream


if TYPE_CHECKING:
    from ..data.pairs import PairDataset
    from ..modeling.base import BlipPreTrainedModel
    from ..processing_blip import BlipProcessor
    from ..training import BlipFinetuningArguments, BlipTrainer
    from ..training.task_metrics import Records, TaskEvaluation


def check_options(options: FinetuneOptions, arguments: "BlipFinetuningArguments") -> None:
    """Checks options before a model is loaded, and whether the run resumes."""
    check_lora(options, arguments)
    prepare_run(options, arguments)
    if options.eval_data is not None:
        warn_about_training_data(options)


def warn_about_training_data(options: FinetuneOptions) -> None:
    """Warns about sources to evaluate on that are trained on too. Two splits of a source are different data."""
    from transformers.utils import logging

    trained_on = set(map(os.path.realpath, options.data))
    evaluated_on = [source for source in options.eval_data or () if not is_scenes(source)]
    shared = [source for source in evaluated_on if os.path.realpath(source) in trained_on]
    evaluation = options.evaluation_source()
    if evaluation is not None and options.training_source().split != evaluation.split:
        shared = [source for source in shared if not _has_splits(source)]
    if shared:
        logging.get_logger(__name__).warning(
            f"The model is evaluated on {', '.join(shared)}, which it is also trained on, so the metrics say nothing about"
            " new data. Remove it from `data` or from `eval_data`."
        )


def _has_splits(source: str) -> bool:
    """Returns whether a source may have splits: a list of records has none."""
    from ..data.readers.records import first_character

    return not source.endswith(".jsonl") and first_character(Path(source)) != "["


def run_finetuning(
    options: FinetuneOptions,
    arguments: "BlipFinetuningArguments",
    *,
    model: "BlipPreTrainedModel",
    processor: "BlipProcessor",
    read_records: Callable[[Source, int], "Records"],
    dataset_class: "type[PairDataset[Any]]",
    collator: Callable[[Sequence[Any]], dict[str, Any]],
    evaluation: "TaskEvaluation | None",
    baseline: Callable[[Any, Any], Mapping[str, float]] | None = None,
    transform_class: type | None = None,
    trainer_class: "type[BlipTrainer] | None" = None,
    export: Callable[[Any], "BlipPreTrainedModel"] | None = None,
    heads: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains (or resumes), saves model, processor and log, and evaluates if the options name a set for that.

    The keyword arguments are the steps in which the tasks differ. `baseline` computes metrics of the records alone,
    `export` makes the model to save and to evaluate from the trained one, and LoRA trains `heads` as a whole. Returns the
    metrics of training, and of evaluation as `eval_...`; with `dry_run`, a description of the run.
    """
    from ..data.readers.usable import recorded_files
    from ..training import BlipTrainer
    from .dry_run import describe_run

    image_size = image_size_of(model)
    transform = training_transform(options, image_size, transform_class)
    seed, train_records = arguments.seed, None
    if isinstance(options, PairTrainingOptions) and options.is_streamed():
        train_dataset: Any = make_stream(
            options, transform, image_size, seed=seed, max_bad_share=arguments.max_bad_share
        )
        train_files = []
    else:
        with recorded_files() as train_files:
            train_records = read_records(options.training_source(), image_size)
        loading_counts(train_files).check(arguments.max_bad_share)
        train_dataset = dataset_class(train_records, transform, seed=seed)
    source = options.evaluation_source()
    with recorded_files() as eval_files:
        eval_records = None if source is None else read_records(source, image_size)
    if options.lora:
        adapted: Any = add_adapters(model, options, base=options.model, modules_to_save=heads)
        adapted.vision_model.freeze_first_layers(options.freeze_vision_layers)
        model = adapted
    trainer = (trainer_class or BlipTrainer)(
        model,
        arguments,
        train_dataset=train_dataset,
        eval_dataset=None if eval_records is None else dataset_class(eval_records),
        data_collator=collator,
        processing_class=processor,
        task_evaluation=evaluation,
    )
    if options.dry_run:
        return describe_run(trainer)
    metrics = add_loading_skips(train(trainer, options), train_files)
    model = save_finetuned(trainer, processor, export)
    if eval_records is not None and evaluation is not None:
        found = evaluation.evaluate(model, processor, eval_records, arguments.per_device_eval_batch_size)
        found = add_loading_skips(found, eval_files)
        found |= {} if baseline is None else baseline(train_records, eval_records)
        metrics |= {f"eval_{name}": value for name, value in found.items()}
    finish_run(arguments, card=write_run_cards(options, trainer, metrics))
    push_run(arguments, trainer.hub_model_id)
    return metrics


def training_transform(options: TrainingOptions, image_size: int, transform_class: type | None = None) -> Any | None:
    """Returns the augmentation of the options. Scenes are not augmented: crops would cut off what texts are about."""
    from ..data.transforms import TrainTransform

    if not options.augment or options.training_source().is_scenes:
        return None
    return (transform_class or TrainTransform)(image_size, min_scale=options.min_scale)


def train(trainer: "BlipTrainer", options: TrainingOptions) -> dict[str, Any]:
    """Trains (or resumes), saves the log, and returns the metrics of training.

    Raises:
        BrokenDataError: If more than `max_bad_share` of the records were skipped.
    """
    from ..modeling.cpu import optimize_for_cpu
    from ..training.trainer import base_model
    from ..training.worker_errors import worker_errors

    if trainer.args.device.type == "cpu":
        optimize_for_cpu(base_model(trainer.model))  # for the momentum encoder and for evaluation, without gradients
    start_run(options, trainer.args)
    with worker_errors():
        metrics = trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint).metrics
    trainer.gather_model()
    trainer.save_state()
    return metrics | report_skips(trainer)


def report_skips(trainer: "BlipTrainer") -> dict[str, Any]:
    """Names skipped training records in one line, and returns their number, in all and by reason."""
    from transformers.utils import logging

    counts = trainer.skip_counts()
    if counts is None:
        return {}
    counts.check(trainer.args.max_bad_share)
    if counts.total and trainer.is_world_process_zero():
        logging.get_logger(__name__).warning(str(counts))
    return counts.metrics()


def save_finetuned(
    trainer: "BlipTrainer",
    processor: "BlipProcessor",
    export: Callable[[Any], "BlipPreTrainedModel"] | None,
) -> "BlipPreTrainedModel":
    """Saves the trained model with its processor, and the adapter of LoRA beside it; returns the saved model."""
    from ..training.trainer import base_model

    output_dir, is_main_process = trainer.args.output_dir, trainer.is_world_process_zero()
    is_adapted = base_model(trainer.model) is not trainer.model
    model: Any = trainer.model
    if not is_adapted:
        trainer.save_model()
    else:
        if is_main_process:
            save_adapter(model, output_dir)
        model = model.merge_and_unload()
    if export is not None:
        model = export(model)
    if is_main_process and (is_adapted or export is not None):
        model.save_pretrained(output_dir)
        processor.save_pretrained(output_dir)
    return model


__all__ = [
    "check_options",
    "run_finetuning",
    "save_finetuned",
    "train",
    "training_transform",
    "warn_about_training_data",
]
