# SPDX-License-Identifier: BSD-3-Clause
"""What computes `metric_for_best_model`, decided before training."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from transformers import IntervalStrategy
from transformers.utils import logging

from .arguments import BlipTrainingArguments
from .task_metrics import TaskEvaluation, records_of


logger = logging.get_logger(__name__)


def find_evaluation(
    arguments: BlipTrainingArguments, loss_names: Collection[str], evaluation: TaskEvaluation | None, eval_dataset: Any
) -> TaskEvaluation | None:
    """The evaluation that computes `metric_for_best_model`, or `None` if the trainer itself does.

    Raises:
        ValueError: If nothing computes it, or the evaluation set has no records for it.
    """
    metric = str(arguments.metric_for_best_model)
    datasets = eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}
    loss_metrics = _with_names_of_sets(loss_names, datasets)
    task_metrics = _with_names_of_sets(() if evaluation is None else evaluation.metric_names, datasets)
    name = metric.removeprefix("eval_")
    if name not in [*loss_metrics, *task_metrics]:
        raise ValueError(
            f"metric_for_best_model={metric!r} is unknown. Pass one of {', '.join([*loss_metrics, *task_metrics])}."
        )
    if arguments.eval_strategy == IntervalStrategy.NO:
        logger.warning(
            f"metric_for_best_model={metric!r} chooses no checkpoint, because training runs without evaluation. Set"
            " `eval_strategy` to 'epoch' or 'steps'."
        )
    if name not in task_metrics or evaluation is None:
        return None
    for dataset in datasets.values():
        _check_records(metric, evaluation, dataset)
    return evaluation


def _with_names_of_sets(metrics: Iterable[str], datasets: Mapping[str, Any]) -> list[str]:
    """The metrics under the names that transformers gives them for several evaluation sets: `<set>_<metric>`."""
    return [f"{name}_{metric}" if name else metric for name in datasets for metric in metrics]


def _check_records(metric: str, evaluation: TaskEvaluation, dataset: Any) -> None:
    if dataset is None:
        return
    records = records_of(dataset)
    if records is None:
        raise ValueError(
            f"metric_for_best_model={metric!r} needs the records of the evaluation set, which is a"
            f" {type(dataset).__name__}. Pass a PairDataset, VqaDataset or Nlvr2Dataset, or a sequence of records."
        )
    evaluation.check(records)


__all__ = ["find_evaluation"]
