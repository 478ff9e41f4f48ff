# SPDX-License-Identifier: BSD-3-Clause
"""Metrics of the tasks during training: captions, answers and rankings of a part of the evaluation set.

Each function of this module makes the evaluation of one task, which [`BlipTrainer`] runs if `metric_for_best_model` names
one of its metrics.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from ..data.collators import BlipCaptioningCollator
from ..data.pairs import PairDataset
from ..data.readers import group_captions
from ..data.readers.vqa import VqaRecord, has_answers
from ..evaluation.caption import evaluate_captions
from ..evaluation.caption_metrics import JAVA_METRICS, Metric, Tokenizer, metric_names, resolve_metrics
from ..evaluation.defaults import K_TEST, NUM_CANDIDATES
from ..evaluation.nlvr2 import evaluate_nlvr2
from ..evaluation.recall import rank_metrics
from ..evaluation.relevance import Relevance, check_relevance
from ..evaluation.retrieval import check_num_candidates, evaluate_retrieval
from ..evaluation.vqa import evaluate_vqa
from ..modeling.caption import BlipForConditionalGeneration
from ..modeling.nlvr2 import BlipForVisualReasoning
from ..modeling.retrieval_training import BlipForRetrievalTraining
from ..modeling.vqa import BlipForQuestionAnswering
from ..processing_blip import BlipProcessor
from .evaluation_set import PadToWorldSize


Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class TaskEvaluation:
    """How a task is evaluated.

    Args:
        metric_names (`tuple[str, ...]`):
            Names of the metrics, for `metric_for_best_model`.
        evaluate (`Callable`):
            Maps model, processor, records and batch size to the metrics. It is called on all processes, with all records.
        select (`Callable`):
            Maps records and a number to at most so many images, questions or image pairs.
        check (`Callable`):
            Raises a `ValueError` for records that cannot be evaluated, before training.
    """

    metric_names: tuple[str, ...]
    evaluate: Callable[[Any, BlipProcessor, Any, int], Mapping[str, Any]]
    select: Callable[[Records, int], Records]
    check: Callable[[Any], None] = lambda records: None


def caption_evaluation(
    *, metrics: Sequence[Metric] | None = None, tokenizer: Tokenizer = "treebank", **settings: Any
) -> TaskEvaluation:
    """Captions images, and compares with all captions of each. `settings` are arguments of `evaluate_captions`."""
    metrics = resolve_metrics(metrics, tokenizer)

    def evaluate(
        model: BlipForConditionalGeneration, processor: BlipProcessor, pairs: Records, batch_size: int
    ) -> dict[str, Any]:
        groups = group_captions(pairs)
        result = evaluate_captions(
            model, processor, groups, metrics=metrics, tokenizer=tokenizer, batch_size=batch_size, **settings
        )
        return {
            **result.metrics,
            "num_skipped": result.num_skipped,
            "num_skipped_by_reason": result.num_skipped_by_reason,
        }

    return TaskEvaluation(metric_names(metrics), evaluate, select_images)


def retrieval_evaluation(*, k: int = K_TEST, relevance: Relevance = "equal") -> TaskEvaluation:
    """Ranks captions and images in two stages, as [`~blip_hf.evaluation.retrieval.evaluate_retrieval`] does."""
    check_num_candidates(k)
    check_relevance(relevance)

    def evaluate(
        model: BlipForRetrievalTraining, processor: BlipProcessor, pairs: Records, batch_size: int
    ) -> dict[str, float]:
        retriever = model.export_retriever() if isinstance(model, BlipForRetrievalTraining) else model
        result = evaluate_retrieval(retriever, processor, pairs, k=k, relevance=relevance, image_batch_size=batch_size)
        return result.metrics()

    names = tuple(rank_metrics({"image_to_text": torch.zeros(1), "text_to_image": torch.zeros(1)}))
    return TaskEvaluation((*names, *(f"itc_{name}" for name in names)), evaluate, select_images)


def vqa_evaluation(
    *, answer_list: Sequence[str] | None = None, num_candidates: int = NUM_CANDIDATES
) -> TaskEvaluation:
    """Answers questions, by ranking a list of answers or by generating."""

    def evaluate(
        model: BlipForQuestionAnswering, processor: BlipProcessor, questions: Sequence[VqaRecord], batch_size: int
    ) -> dict[str, float]:
        result = evaluate_vqa(
            model,
            processor,
            questions,
            answer_list=answer_list,
            num_candidates=num_candidates,
            batch_size=batch_size,
        )
        return result.metrics()

    return TaskEvaluation(("accuracy",), evaluate, select_rows, check_answers)


def nlvr2_evaluation() -> TaskEvaluation:
    """Decides whether sentences are true of two images."""

    def evaluate(
        model: BlipForVisualReasoning, processor: BlipProcessor, records: Records, batch_size: int
    ) -> dict[str, float]:
        return evaluate_nlvr2(model, processor, records, batch_size=batch_size).metrics()

    return TaskEvaluation(("accuracy", "consistency"), evaluate, select_rows)


def evaluation_of(model: nn.Module, collator: Any, metric: str) -> TaskEvaluation | None:
    """The evaluation of a model's task with default settings, or `None` for a model without one, as in pre-training.

    METEOR and SPICE start Java, which takes half a minute, so they are computed only if `metric` names them.
    """
    if isinstance(model, BlipForConditionalGeneration):
        prompt = collator.prompt if isinstance(collator, BlipCaptioningCollator) else None
        named: list[Metric] = [name for name in JAVA_METRICS if metric.endswith(name)]
        return caption_evaluation(metrics=["bleu", "rouge_l", "cider", *named], prompt=prompt)
    if isinstance(model, BlipForRetrievalTraining):
        return retrieval_evaluation()
    if isinstance(model, BlipForQuestionAnswering):
        return vqa_evaluation()
    return nlvr2_evaluation() if isinstance(model, BlipForVisualReasoning) else None


# Records


class Rows(Sequence):
    """View of the records at given positions."""

    def __init__(self, records: Records, positions: Sequence[int]) -> None:
        self.records = records
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: int) -> Mapping[str, Any]:  # type: ignore[override]  # no slices
        return self.records[self.positions[i]]


def records_of(dataset: Dataset | Records) -> Records | None:
    """The records behind a data set, or `None` if it has none, as a data set of tensors."""
    if isinstance(dataset, PadToWorldSize):
        return records_of(dataset.dataset)
    if isinstance(dataset, Subset):
        records = records_of(dataset.dataset)
        return None if records is None else take(records, dataset.indices)
    if isinstance(dataset, PairDataset):
        return dataset.pairs
    return dataset if isinstance(dataset, datasets.Dataset | Sequence) else None


def take(records: Records, positions: Sequence[int]) -> Records:
    """The records at given positions, without fetching them."""
    return records.select(positions) if isinstance(records, datasets.Dataset) else Rows(records, positions)


def select_rows(records: Records, max_records: int) -> Records:
    """At most so many records, at equal distances."""
    return take(records, evenly_spaced(len(records), max_records)) if len(records) > max_records else records


def select_images(pairs: Records, max_images: int) -> Records:
    """The pairs of at most so many images, at equal distances."""
    image_ids = pairs["image_id"][:] if isinstance(pairs, datasets.Dataset) else [pair["image_id"] for pair in pairs]
    distinct = list(dict.fromkeys(image_ids))
    if len(distinct) <= max_images:
        return pairs
    chosen = {distinct[i] for i in evenly_spaced(len(distinct), max_images)}
    return take(pairs, [row for row, image_id in enumerate(image_ids) if image_id in chosen])


def evenly_spaced(total: int, count: int) -> list[int]:
    """`count` positions from 0 on at equal distances.

    Example:
        >>> evenly_spaced(10, 4)
        [0, 2, 5, 7]
    """
    return [i * total // count for i in range(count)]


def check_answers(questions: Sequence[VqaRecord]) -> None:
    """Raises a `ValueError` if no question has an answer to compare with."""
    if not has_answers(questions):
        raise ValueError(
            f"None of the {len(questions)} questions to evaluate on has an answer, so the accuracy cannot be computed. Pass questions"
            " with answers; those of VQA's own files are in a file of annotations."
        )


__all__ = [
    "Records",
    "TaskEvaluation",
    "caption_evaluation",
    "check_answers",
    "evaluation_of",
    "nlvr2_evaluation",
    "records_of",
    "retrieval_evaluation",
    "vqa_evaluation",
]
