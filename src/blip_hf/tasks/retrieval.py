# SPDX-License-Identifier: BSD-3-Clause
"""Image-text retrieval (paper, section 5.1): fine-tunes with ITC and ITM, and ranks in two stages."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..evaluation.defaults import K_TEST
from ..pair_scores import PAIR_SCORE, PairScore
from . import base, finetuning
from .base import PairEvaluateOptions, PairFinetuneOptions
from .loading import add_loading_skips
from .options import option
from .source import Source


if TYPE_CHECKING:
    from ..evaluation.retrieval import RetrievalResult
    from ..modeling.retrieval_training import BlipForRetrievalTraining
    from ..training import BlipFinetuningArguments


# Tokens of a caption in BLIP's retrieval, [CLS] and [SEP] included (salesforce/BLIP, models/blip_retrieval.py).
MAX_LENGTH = 35
CONFIGURED = ("queue_size", "momentum", "alpha", "negative_temperature", "gather_keys", "negative_all_rank")


@dataclass(kw_only=True)
class RankingOptions:
    """How candidates are ranked."""

    k_test: int = option(K_TEST, "Candidates that the matching head re-ranks (paper: COCO 256, Flickr30k 128)", "N")
    relevance: Literal["equal", "own"] = option(
        "equal", "Right captions of an image: its own, as in published numbers, or also those equal to them"
    )
    score: PairScore = option(
        PAIR_SCORE,
        "Score that re-ranks: paper (ITM logit plus cosine), posterior (ITM log-odds plus cosine / T) or itm (log-odds)",
    )


@dataclass(kw_only=True)
class FinetuneOptions(RankingOptions, PairFinetuneOptions):
    """Options of fine-tuning for retrieval. `None` stands for the default of [`BlipRetrievalTrainingConfig`]."""

    queue_size: int | None = option(None, "Number of pairs in the queue (default: 57600, as salesforce/BLIP)", "N")
    momentum: float | None = option(None, "Decay of the momentum encoder (default: 0.995, as salesforce/BLIP)", "RATE")
    alpha: float | None = option(
        None, "Final share of the momentum encoder in contrastive targets (default: 0.4)", "SHARE"
    )
    negative_temperature: float | None = option(
        None, "Temperature that hard negatives are drawn at (default: that of the contrastive loss; 1: any pairs)", "T"
    )
    gather_keys: bool | None = option(None, base.GATHER_KEYS_HELP)
    negative_all_rank: bool | None = option(None, base.NEGATIVE_ALL_RANK_HELP)


@dataclass(kw_only=True)
class EvaluateOptions(RankingOptions, PairEvaluateOptions):
    """Options of evaluating retrieval."""

    fit_temperature: bool = option(
        False, "Fit T of the posterior to --data, a development set, and write it into the checkpoint's config.json"
    )


def load_model(options: FinetuneOptions) -> "BlipForRetrievalTraining":
    """Loads the model to start from, with momentum encoder and queue, with float32 weights."""
    from ..configuration_blip import BlipRetrievalTrainingConfig
    from ..modeling.retrieval_training import BlipForRetrievalTraining

    values = base.config_values(BlipRetrievalTrainingConfig, options, CONFIGURED)
    values["contrastive_warmup_steps"] = 0  # that of pre-training is over
    return base.prepare_for_training(base.load_for_training(BlipForRetrievalTraining, options, **values), options)


def finetune(options: FinetuneOptions, arguments: "BlipFinetuningArguments") -> dict[str, float]:
    """Fine-tunes for retrieval, saves a `BlipForImageTextRetrieval`, and evaluates it if there is a set for that.

    The output folder opens here and in plain transformers.

    Args:
        options (`FinetuneOptions`):
            Model, data and objectives.
        arguments (`BlipFinetuningArguments`):
            Arguments of the trainer.

    Returns:
        `dict[str, float]`: metrics of training, and of two-stage evaluation as `eval_...`.
    """
    from ..data.collators import BlipPretrainingCollator
    from ..data.pairs import PairDataset
    from ..modeling.retrieval_training import BlipForRetrievalTraining
    from ..training import BlipContrastiveTrainer
    from ..training.task_metrics import retrieval_evaluation

    finetuning.check_options(options, arguments)
    evaluation = None
    if options.eval_data is not None:
        # Fails here rather than after training.
        evaluation = retrieval_evaluation(k=options.k_test, relevance=options.relevance, score=options.score)
    if options.lora:
        arguments.learn_temperature = False  # an adapter has no temperature
    model, processor = load_model(options), base.load_processor(options.model, options.image_size)
    return finetuning.run_finetuning(
        options,
        arguments,
        model=model,
        processor=processor,
        read_records=Source.read_pairs,
        dataset_class=PairDataset,
        collator=BlipPretrainingCollator(processor, max_length=MAX_LENGTH),
        evaluation=evaluation,
        trainer_class=BlipContrastiveTrainer,
        export=BlipForRetrievalTraining.export_retriever,
        heads=("itm_head",),
    )


def evaluate(options: EvaluateOptions) -> dict[str, float]:
    """Evaluates retrieval in two stages, and writes the ranked candidates of each query if the options name a file.

    Args:
        options (`EvaluateOptions`):
            Model and data.

    Returns:
        `dict[str, float]`: recalls in both directions after re-ranking, those of the cosines as `itc_...`, and those of the
        other scores as `paper_...` and `posterior_...`.

    Raises:
        ValueError: If the temperature is to be written into a checkpoint that is not a local folder.
    """
    from ..data.readers.usable import recorded_files
    from ..distributed import rank
    from ..evaluation.retrieval import evaluate_retrieval
    from ..files import write_json
    from ..modeling.retrieval import BlipForImageTextRetrieval

    if options.fit_temperature and not Path(options.model).is_dir():
        raise ValueError(
            f"--fit_temperature writes into the checkpoint, but {options.model} is not a local folder. Download it, or save"
            " it with `save_pretrained`, and pass its folder."
        )
    model, processor = base.load_for_evaluation(BlipForImageTextRetrieval, options)
    with recorded_files() as files:
        pairs = options.evaluation_source().read_pairs(base.image_size_of(model))
    result = evaluate_retrieval(
        model,
        processor,
        pairs,
        k=options.k_test,
        relevance=options.relevance,
        score=options.score,
        image_batch_size=options.batch_size,
        num_workers=options.workers,
        show_progress=not options.no_progress,
    )
    if options.fit_temperature:
        result = result.with_temperature(result.fit_temperature())
        if rank() == 0:
            write_temperature(Path(options.model), result.temperature)
    if options.output is not None:
        write_json(_ranking(result), options.output)
    return add_loading_skips(result.metrics(), files)


def write_temperature(checkpoint: Path, temperature: float) -> None:
    """Sets `itm_temperature` in the `config.json` of a checkpoint, atomically. All other fields keep their values."""
    from transformers.utils import CONFIG_NAME

    from ..files import write_json

    path = checkpoint / CONFIG_NAME
    fields = json.loads(path.read_text(encoding="utf-8"))
    write_json({**fields, "itm_temperature": temperature}, path, indent=2)


def _ranking(result: "RetrievalResult") -> dict[str, Any]:
    return {
        "image_ids": result.image_ids,
        "texts": result.texts,
        "text_to_image": result.text_to_image.tolist(),
        "image_candidates": result.image_candidates.index.tolist(),
        "text_candidates": result.text_candidates.index.tolist(),
    }


__all__ = ["EvaluateOptions", "FinetuneOptions", "evaluate", "finetune", "load_model"]
