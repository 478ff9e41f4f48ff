# SPDX-License-Identifier: BSD-3-Clause
"""Image-text retrieval (paper, section 5.1)."""

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from ..evaluation.defaults import K_TEST
from .base import (
    FinetuningRun,
    PairEvaluateOptions,
    PairFinetuneOptions,
    given_options,
    load_for_evaluation,
    load_for_training,
    load_pair_records,
    prepare_for_training,
    run_finetuning,
)


if TYPE_CHECKING:
    from ..modeling.retrieval_training import BlipForRetrievalTraining
    from ..training import BlipFinetuningArguments


# Tokens of a caption, [CLS] and [SEP] included (salesforce/BLIP, models/blip_retrieval.py).
MAX_LENGTH = 35


@dataclass(kw_only=True)
class FinetuneOptions(PairFinetuneOptions):
    """Options of the fine-tuning of a retrieval model. `None` stands for the value of the checkpoint's configuration."""

    queue_size: int | None = field(
        default=None, metadata={"help": "Pairs in the queue (default: the checkpoint's, or 57600)"}
    )
    momentum: float | None = field(
        default=None,
        metadata={"help": "Decay of the momentum encoder (default: the checkpoint's, or 0.995)", "metavar": "RATE"},
    )
    alpha: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the momentum encoder in the contrastive targets (default: the checkpoint's, or 0.4)",
            "metavar": "WEIGHT",
        },
    )
    negative_temperature: float | None = field(
        default=None,
        metadata={
            "help": "Temperature that hard negatives of ITM are drawn with (default: the checkpoint's, or the contrastive"
            " one); 1 draws nearly any pair"
        },
    )
    negative_all_rank: bool | None = field(
        default=None,
        metadata={
            "help": "Draw hard negatives from the batches of all processes (default: the checkpoint's, or True, as for"
            " COCO in salesforce/BLIP)"
        },
    )
    k_test: int = field(default=K_TEST, metadata={"help": "Candidates per query that the ITM head re-ranks"})


@dataclass(kw_only=True)
class EvaluateOptions(PairEvaluateOptions):
    """Options of two-stage evaluation."""

    k_test: int = field(
        default=K_TEST,
        metadata={"help": "Candidates per query that the ITM head re-ranks; the paper has 256 for COCO"},
    )


def load_model(options: FinetuneOptions) -> "BlipForRetrievalTraining":
    """Loads a retrieval model with momentum encoder and queue, for training."""
    from ..modeling.retrieval_training import BlipForRetrievalTraining

    fields = given_options(
        queue_size=options.queue_size,
        momentum=options.momentum,
        alpha=options.alpha,
        negative_temperature=options.negative_temperature,
        negative_all_rank=options.negative_all_rank,
    )
    return prepare_for_training(load_for_training(BlipForRetrievalTraining, options, **fields), options)


def finetune(options: FinetuneOptions, arguments: "BlipFinetuningArguments") -> dict[str, float]:
    """Fine-tunes a retrieval model, saves it as [`BlipForImageTextRetrieval`], and evaluates it on `eval_data`.

    Args:
        options (`FinetuneOptions`):
            The checkpoint and the data.
        arguments ([`BlipFinetuningArguments`]):
            Arguments of the trainer, such as `BlipFinetuningArguments.for_task("retrieval", output_dir=...)`.

    Returns:
        `dict[str, float]`: metrics of the training, and those of two-stage evaluation as `eval_...`.
    """
    from ..data.collators import BlipPretrainingCollator
    from ..data.pairs import PairDataset
    from ..evaluation.retrieval import check_num_candidates, evaluate_retrieval
    from ..training import BlipContrastiveTrainer

    if options.eval_data is not None:
        check_num_candidates(options.k_test)  # a mistake shows before the training

    def evaluate_run(run: FinetuningRun) -> dict[str, float]:
        result = evaluate_retrieval(
            run.model, run.processor, run.eval_records, k=options.k_test, image_batch_size=run.batch_size
        )
        return result.metrics()

    return run_finetuning(
        options,
        arguments,
        load_model=load_model,
        load_records=load_pair_records,
        dataset_class=PairDataset,
        make_collator=partial(BlipPretrainingCollator, max_length=MAX_LENGTH),
        evaluate=evaluate_run,
        trainer_class=BlipContrastiveTrainer,
        export=lambda model: model.export_retriever(),
        evaluates_on_all_processes=True,
    )


def evaluate(options: EvaluateOptions) -> dict[str, float]:
    """Evaluates a retrieval model in two stages, and writes the candidates of each query to `output` if that is given.

    Returns:
        `dict[str, float]`: recalls in both directions after re-ranking, and those of the cosines as `itc_...`.
    """
    from ..evaluation.retrieval import evaluate_retrieval
    from ..files import write_json
    from ..modeling.retrieval import BlipForImageTextRetrieval

    model, processor = load_for_evaluation(BlipForImageTextRetrieval, options)
    result = evaluate_retrieval(
        model,
        processor,
        load_pair_records(options.evaluation_source(), options, model.config.vision_config.image_size),
        k=options.k_test,
        image_batch_size=options.batch_size,
        show_progress=not options.no_progress,
    )
    if options.output is not None:
        write_json(
            {
                "image_ids": result.image_ids,
                "texts": result.texts,
                "text_to_image": result.text_to_image.tolist(),
                "image_candidates": result.image_candidates.index.tolist(),
                "text_candidates": result.text_candidates.index.tolist(),
            },
            options.output,
        )
    return result.metrics()


__all__ = ["EvaluateOptions", "FinetuneOptions", "evaluate", "finetune", "load_model"]
