# SPDX-License-Identifier: BSD-3-Clause
"""NLVR2 (paper, section 5.5): fine-tunes a model that tells whether a sentence is true of two images, and evaluates it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import base, finetuning
from .loading import add_loading_skips
from .source import Source


if TYPE_CHECKING:
    from ..modeling.nlvr2 import BlipForVisualReasoning
    from ..training import BlipFinetuningArguments


# Parts that start from random weights.
HEADS = ("cls_head", "merge_layer")


@dataclass(kw_only=True)
class FinetuneOptions(base.FinetuneOptions):
    """Options of fine-tuning for NLVR2."""


@dataclass(kw_only=True)
class EvaluateOptions(base.EvaluateOptions):
    """Options of evaluating NLVR2."""


def load_model(options: FinetuneOptions) -> "BlipForVisualReasoning":
    """Loads the model to start from, an NLVR2, retrieval or pre-training checkpoint, with float32 weights."""
    from ..modeling.nlvr2 import BlipForVisualReasoning

    if base.checkpoint_type(options.model) == BlipForVisualReasoning.config_class.model_type:
        model = base.load_for_training(BlipForVisualReasoning, options)
    else:
        fields = {} if options.drop_path is None else {"drop_path_rate": options.drop_path}
        model = BlipForVisualReasoning.from_matcher_pretrained(options.model, vision_fields=fields)
    return base.prepare_for_training(model, options)


def finetune(options: FinetuneOptions, arguments: "BlipFinetuningArguments") -> dict[str, float]:
    """Fine-tunes for NLVR2, saves the model with its processor, and evaluates it if there is a set for that.

    Args:
        options (`FinetuneOptions`):
            Model and data.
        arguments (`BlipFinetuningArguments`):
            Arguments of the trainer.

    Returns:
        `dict[str, float]`: metrics of training, and of evaluation as `eval_...`.
    """
    from ..data.nlvr2 import BlipNlvr2Collator, Nlvr2Dataset, Nlvr2TrainTransform
    from ..training.task_metrics import nlvr2_evaluation

    finetuning.check_options(options, arguments)
    model, processor = load_model(options), base.load_processor(options.model, options.image_size)
    return finetuning.run_finetuning(
        options,
        arguments,
        model=model,
        processor=processor,
        read_records=_read_records,
        dataset_class=Nlvr2Dataset,
        collator=BlipNlvr2Collator(processor),
        evaluation=nlvr2_evaluation(),
        transform_class=Nlvr2TrainTransform,
        heads=HEADS,
    )


def evaluate(options: EvaluateOptions) -> dict[str, float]:
    """Evaluates an NLVR2 model, and writes its prediction for each record if the options name a file.

    Args:
        options (`EvaluateOptions`):
            Model and data.

    Returns:
        `dict[str, float]`: accuracy and consistency.
    """
    from ..data.readers.usable import recorded_files
    from ..evaluation.nlvr2 import evaluate_nlvr2
    from ..files import write_json
    from ..modeling.nlvr2 import BlipForVisualReasoning

    model, processor = base.load_for_evaluation(BlipForVisualReasoning, options)
    with recorded_files() as files:
        records = _read_records(options.evaluation_source(), base.image_size_of(model))
    result = evaluate_nlvr2(model, processor, records, batch_size=options.batch_size, num_workers=options.workers)
    if options.output is not None:
        write_json(result.predictions, options.output)
    return add_loading_skips(result.metrics(), files)


def _read_records(source: Source, image_size: int) -> Sequence[Mapping[str, Any]]:
    from datasets import concatenate_datasets

    from ..data.readers import load_nlvr2
    from ..data.scenes import SceneNlvr2

    if source.is_scenes:
        scenes = source.scenes(image_size)
        return SceneNlvr2(len(scenes), start=scenes.start, image_size=image_size)
    options = {"image_root": source.image_root, "allow_outside": source.allow_outside}
    return concatenate_datasets([load_nlvr2(path, **options) for path in source.data])


__all__ = ["EvaluateOptions", "FinetuneOptions", "evaluate", "finetune", "load_model"]
