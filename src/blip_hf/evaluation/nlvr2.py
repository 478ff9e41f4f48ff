# SPDX-License-Identifier: BSD-3-Clause
"""Accuracy and consistency on NLVR2 (Suhr et al., 2019)."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter
from typing import Any

from torch import Tensor

from ..data.nlvr2 import BlipNlvr2Collator, Nlvr2Dataset
from ..data.read_ahead import read_ahead
from ..distributed import gather_objects, rank, world_size
from ..modeling.nlvr2 import BlipForVisualReasoning
from ..processing_blip import BlipProcessor
from .defaults import BATCH_SIZE
from .features import evaluating


@dataclass(frozen=True)
class Nlvr2Result:
    """Metrics and predictions on NLVR2.

    Args:
        accuracy (`float`):
            Fraction of correct predictions.
        consistency (`float`):
            Fraction of sentences with a correct prediction for each of their image pairs.
        num_pairs (`int`):
            Records with a prediction.
        num_skipped (`int`):
            Records without one: an image could not be read, or the sentence has no words.
        predictions (`list[bool | None]`):
            Prediction for each record, `None` if it was skipped.
    """

    accuracy: float
    consistency: float
    num_pairs: int
    num_skipped: int
    predictions: list[bool | None] = field(repr=False)

    def metrics(self) -> dict[str, float]:
        """Returns the metrics and counts as one flat dictionary."""
        names = ("accuracy", "consistency", "num_pairs", "num_skipped")
        return {name: getattr(self, name) for name in names}


def reasoning_metrics(
    predictions: Sequence[bool], labels: Sequence[bool], sentence_ids: Sequence[Hashable]
) -> dict[str, float]:
    """Returns `accuracy` and `consistency`, in [0, 1], for parallel sequences.

    Records with the same sentence share a sentence id. Consistency counts sentences with only correct predictions.

    Raises:
        ValueError: If there are no records, or the lengths differ.

    Example:
        >>> reasoning_metrics([True, True, False], [True, False, False], ["a", "a", "b"])
        {'accuracy': 0.6666666666666666, 'consistency': 0.5}
    """
    if not len(predictions) == len(labels) == len(sentence_ids) > 0:
        raise ValueError(
            f"Got {len(predictions)} predictions, {len(labels)} labels and {len(sentence_ids)} sentence ids. Pass equally"
            " many of each, for at least one pair."
        )
    is_right = [prediction == label for prediction, label in zip(predictions, labels, strict=True)]
    is_consistent: dict[Hashable, bool] = {}
    for sentence_id, right in zip(sentence_ids, is_right, strict=True):
        is_consistent[sentence_id] = is_consistent.get(sentence_id, True) and right
    return {
        "accuracy": sum(is_right) / len(is_right),
        "consistency": sum(is_consistent.values()) / len(is_consistent),
    }


def evaluate_nlvr2(
    model: BlipForVisualReasoning,
    processor: BlipProcessor,
    dataset: Nlvr2Dataset | Sequence[Mapping[str, Any]],
    *,
    batch_size: int = BATCH_SIZE,
    num_workers: int = 0,
) -> Nlvr2Result:
    """Predicts the label of each record `{"images", "sentence", "label"}`, with an optional `sentence_id`.

    Unreadable records are skipped with a warning. `num_workers` threads read images ahead of the model. Mode, device and
    dtype of the model are kept. Under `torch.distributed` each process takes a share of the records, and all return the
    same result.

    Raises:
        ValueError: If the data set has a transform, or no record can be used.

    Example:
        >>> records = load_nlvr2("dev.json", image_root="images/dev")  # doctest: +SKIP
        >>> evaluate_nlvr2(model, processor, records).accuracy  # doctest: +SKIP
        0.823
    """
    if not isinstance(dataset, Nlvr2Dataset):
        dataset = Nlvr2Dataset(dataset)
    if dataset.transform is not None:
        raise ValueError("The data set has a transform, which would change the metrics. Build it without one.")
    collator = BlipNlvr2Collator(processor)
    numbers = range(rank(), len(dataset), world_size())
    own: list[tuple[int, bool, bool, Hashable]] = []
    read = read_ahead(numbers, dataset.get, num_workers=num_workers, depth=2 * batch_size)
    numbered = zip(numbers, read, strict=True)
    with evaluating(model):
        while batch := list(islice(numbered, batch_size)):
            pairs = {number: pair for number, pair in batch if pair is not None}
            if not pairs:
                continue
            verdicts = _judge(model, collator(list(pairs.values())))
            own += [
                (number, verdict, pair["label"], pair["sentence_id"])
                for (number, pair), verdict in zip(pairs.items(), verdicts, strict=True)
            ]
    judged = sorted(gather_objects(own), key=itemgetter(0))
    if not judged:
        raise ValueError(f"None of the {len(dataset)} records can be used. The warnings above name the reasons.")
    numbers_judged, predictions, labels, sentence_ids = zip(*judged, strict=True)
    prediction_of = dict(zip(numbers_judged, predictions, strict=True))
    return Nlvr2Result(
        **reasoning_metrics(predictions, labels, sentence_ids),
        num_pairs=len(judged),
        num_skipped=len(dataset) - len(judged),
        predictions=[prediction_of.get(number) for number in range(len(dataset))],
    )


def _judge(model: BlipForVisualReasoning, batch: dict[str, Tensor]) -> list[bool]:
    inputs = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
    return model(**inputs).logits.argmax(dim=-1).bool().tolist()


__all__ = ["Nlvr2Result", "evaluate_nlvr2", "reasoning_metrics"]
