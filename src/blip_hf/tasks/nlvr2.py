# SPDX-License-Identifier: BSD-3-Clause
"""Two-image reasoning (paper, section 5.5): fine-tune a model that judges a sentence about two images, and measure it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..configuration_blip import BlipVisualReasoningConfig
from ..data.nlvr2 import (
    BlipNlvr2Collator,
    Nlvr2Dataset,
    Nlvr2TrainTransform,
)
from ..data.readers import load_nlvr2
from ..data.scenes import SceneNlvr2
from ..evaluation.nlvr2 import evaluate_nlvr2
from ..files import write_json
from ..modeling.nlvr2 import BlipForVisualReasoning
from ..training import BlipFinetuningArguments, BlipTrainer
from .base import (
    checkpoint_type,
    evaluation_scenes,
    evaluation_source,
    image_size_of,
    load_for_evaluation,
    load_processor,
    prefixed,
    prepare_for_training,
    read_config,
    train_and_save,
    warn_of_training_data,
)
from .options import SCENES, EvaluateOptions, FinetuneOptions, Nlvr2EvaluateOptions, Nlvr2FinetuneOptions


def load_model(options: Nlvr2FinetuneOptions) -> BlipForVisualReasoning:
    """Loads the model to start from, in training mode: one of the task, a matcher, or a pre-training checkpoint.

    Args:
        options (`Nlvr2FinetuneOptions`):
            Options of the command.

    Returns:
        `BlipForVisualReasoning`: with float32 weights.
    """
    if checkpoint_type(options.model) == BlipVisualReasoningConfig.model_type:
        config = read_config(BlipVisualReasoningConfig, options)
        model = BlipForVisualReasoning.from_pretrained(options.model, config=config, dtype=torch.float32)
    else:
        fields = {} if options.drop_path is None else {"drop_path_rate": options.drop_path}
        model = BlipForVisualReasoning.from_matcher_pretrained(options.model, vision_fields=fields)
    return prepare_for_training(model, options)


def finetune(options: Nlvr2FinetuneOptions, arguments: BlipFinetuningArguments) -> dict[str, float]:
    """Fine-tunes the model, saves it with its processor, and evaluates it where there is a set for that.

    Args:
        options (`Nlvr2FinetuneOptions`):
            What to train on.
        arguments (`BlipFinetuningArguments`):
            How.

    Returns:
        `dict[str, float]`: metrics of training, and of evaluation as `eval_...`.
    """
    if options.eval_data is not None:
        warn_of_training_data(options)
    model, processor = load_model(options), load_processor(options.model, options.image_size)
    image_size = image_size_of(model)
    eval_set = None if options.eval_data is None else Nlvr2Dataset(_evaluation_records(options, image_size))
    trainer = BlipTrainer(
        model,
        arguments,
        train_dataset=_training_set(options, image_size, arguments.seed),
        eval_dataset=eval_set,
        data_collator=BlipNlvr2Collator(processor),
        processing_class=processor,
    )
    metrics = train_and_save(trainer)
    if eval_set is not None and trainer.is_world_process_zero():
        batch_size = arguments.per_device_eval_batch_size
        metrics |= prefixed(evaluate_nlvr2(model, processor, eval_set, batch_size=batch_size).metrics())
    return metrics


def evaluate(options: Nlvr2EvaluateOptions) -> dict[str, float]:
    """Evaluates a model, and writes its verdict on each record where a file is named.

    Args:
        options (`Nlvr2EvaluateOptions`):
            What to evaluate, and on what.

    Returns:
        `dict[str, float]`: accuracy and consistency.
    """
    model, processor = load_for_evaluation(BlipForVisualReasoning, options)
    records = _evaluation_records(options, image_size_of(model))
    result = evaluate_nlvr2(model, processor, records, batch_size=options.batch_size)
    if options.output is not None:
        write_json(result.predictions, options.output)
    return result.metrics()


def _training_set(options: Nlvr2FinetuneOptions, image_size: int, seed: int) -> Nlvr2Dataset:
    if options.data == [SCENES]:
        return Nlvr2Dataset(SceneNlvr2(options.num_scenes, image_size=image_size))
    transform = Nlvr2TrainTransform(image_size, min_scale=options.min_scale) if options.augment else None
    return Nlvr2Dataset(_load(options.data, options.image_root), transform, seed=seed)


def _evaluation_records(options: FinetuneOptions | EvaluateOptions, image_size: int) -> Sequence[Mapping[str, Any]]:
    source = evaluation_source(options)
    if source == [SCENES]:
        scenes = evaluation_scenes(options, image_size)
        return SceneNlvr2(len(scenes), start=scenes.start, image_size=image_size)
    return _load(source, options.image_root)


def _load(paths: Sequence[str], image_root: str | None) -> list[dict[str, Any]]:
    return [record for path in paths for record in load_nlvr2(path, image_root=image_root)]


__all__ = ["evaluate", "finetune", "load_model"]
