# SPDX-License-Identifier: BSD-3-Clause
"""NLVR2 (paper, section 5.5): is a sentence true of two images?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .base import (
    BaseEvaluateOptions,
    BaseFinetuneOptions,
    FinetuningRun,
    Source,
    checkpoint_type,
    given_options,
    load_for_evaluation,
    load_for_training,
    prepare_for_training,
    run_finetuning,
)


if TYPE_CHECKING:
    from ..modeling.nlvr2 import BlipForVisualReasoning
    from ..training import BlipFinetuningArguments


@dataclass(kw_only=True)
class FinetuneOptions(BaseFinetuneOptions):
    """Options of the fine-tuning of an NLVR2 model."""


@dataclass(kw_only=True)
class EvaluateOptions(BaseEvaluateOptions):
    """Options of the evaluation of an NLVR2 model."""


def load_model(options: FinetuneOptions) -> "BlipForVisualReasoning":
    """Loads an NLVR2 model, or makes one of a retrieval or pre-training checkpoint, for training."""
    from ..modeling.nlvr2 import BlipForVisualReasoning

    if checkpoint_type(options.model) == BlipForVisualReasoning.config_class.model_type:
        model = load_for_training(BlipForVisualReasoning, options)
    else:
        vision_fields = given_options(drop_path_rate=options.drop_path)
        model = BlipForVisualReasoning.from_matcher_pretrained(options.model, vision_fields=vision_fields)
    return prepare_for_training(model, options)


def load_records(
    source: Source, options: FinetuneOptions | EvaluateOptions, image_size: int
) -> Sequence[Mapping[str, Any]]:
    """Reads sentences about two images."""
    from ..data.readers import load_nlvr2
    from ..data.scenes import SceneNlvr2

    scenes = source.scenes(image_size)
    if scenes is not None:
        return SceneNlvr2(len(scenes), start=scenes.start, image_size=image_size)
    return [record for path in source.paths for record in load_nlvr2(path, image_root=options.image_root)]


def finetune(options: FinetuneOptions, arguments: "BlipFinetuningArguments") -> dict[str, float]:
    """Fine-tunes an NLVR2 model, saves it with its processor, and evaluates it on `eval_data`.

    Args:
        options (`FinetuneOptions`):
            The checkpoint and the data.
        arguments ([`BlipFinetuningArguments`]):
            Arguments of the trainer, such as `BlipFinetuningArguments.for_task("nlvr2", output_dir=...)`.

    Returns:
        `dict[str, float]`: metrics of the training, and those of the evaluation as `eval_...`.
    """
    from ..data.nlvr2 import BlipNlvr2Collator, Nlvr2Dataset, Nlvr2TrainTransform
    from ..evaluation.nlvr2 import evaluate_nlvr2

    def evaluate_run(run: FinetuningRun) -> dict[str, float]:
        return evaluate_nlvr2(run.model, run.processor, run.eval_records, batch_size=run.batch_size).metrics()

    return run_finetuning(
        options,
        arguments,
        load_model=load_model,
        load_records=load_records,
        dataset_class=Nlvr2Dataset,
        make_collator=BlipNlvr2Collator,
        evaluate=evaluate_run,
        transform_class=Nlvr2TrainTransform,
    )


def evaluate(options: EvaluateOptions) -> dict[str, float]:
    """Evaluates an NLVR2 model, and writes its prediction for each record to `output` if that is given.

    Returns:
        `dict[str, float]`: accuracy, consistency and counts.
    """
    from ..evaluation.nlvr2 import evaluate_nlvr2
    from ..files import write_json
    from ..modeling.nlvr2 import BlipForVisualReasoning

    model, processor = load_for_evaluation(BlipForVisualReasoning, options)
    records = load_records(options.evaluation_source(), options, model.config.vision_config.image_size)
    result = evaluate_nlvr2(model, processor, records, batch_size=options.batch_size)
    if options.output is not None:
        write_json(result.predictions, options.output)
    return result.metrics()


__all__ = ["EvaluateOptions", "FinetuneOptions", "evaluate", "finetune", "load_model"]
