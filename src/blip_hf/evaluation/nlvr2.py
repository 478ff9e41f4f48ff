# SPDX-License-Identifier: BSD-3-Clause
"""Two-image reasoning: accuracy and consistency, as NLVR2 defines them (Suhr et al., 2019)."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..data.nlvr2 import BlipNlvr2Collator, Nlvr2Dataset
from ..modeling.nlvr2 import BlipForVisualReasoning
from ..processing_blip import BlipProcessor
from .features import evaluating


@dataclass(frozen=True)
class Nlvr2Result:
    """How often a model is right about sentences on pairs of images.

    Args:
        accuracy (`float`):
            Share of pairs that it judges rightly, in [0, 1].
        consistency (`float`):
            Share of sentences all of whose pairs it judges rightly, in [0, 1].
        num_pairs (`int`):
            Pairs that were judged.
        num_skipped (`int`):
            Records that were left out, as an image could not be read or no word was left.
        predictions (`list[bool | None]`):
            The verdict on each record, `None` where it was left out.
    """

    accuracy: float
    consistency: float
    num_pairs: int
    num_skipped: int
    predictions: list[bool | None] = field(repr=False)

    def metrics(self) -> dict[str, float]:
        """One flat table for logs and JSON."""
        names = ("accuracy", "consistency", "num_pairs", "num_skipped")
        return {name: getattr(self, name) for name in names}


def reasoning_metrics(
    predictions: Sequence[bool], labels: Sequence[bool], sentence_ids: Sequence[Hashable]
) -> dict[str, float]:
    """Accuracy, and consistency: the share of sentences of which every pair is judged rightly.

    Args:
        predictions (sequence of `bool`):
            Verdict on each pair.
        labels (sequence of `bool`):
            Whether the sentence is true of the pair.
        sentence_ids (sequence):
            Which sentence each pair goes with; pairs of one sentence share it.

    Returns:
        `dict[str, float]`: `accuracy` and `consistency`, in [0, 1].

    Raises:
        ValueError: If there are no pairs, or not equally many of each.

    Example:
        Two of three pairs are right; of the sentences only "b" is right throughout.

        >>> reasoning_metrics([True, True, False], [True, False, False], ["a", "a", "b"])
        {'accuracy': 0.6666666666666666, 'consistency': 0.5}
    """
    if not len(predictions) == len(labels) == len(sentence_ids) > 0:
        raise ValueError(
            f"got {len(predictions)} predictions, {len(labels)} labels and {len(sentence_ids)} sentence ids, expected one"
            " of each for at least one pair."
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
    batch_size: int = 32,
) -> Nlvr2Result:
    """Judges each record as it is, without a random crop, flip or swap (which the original has in its test, too).

    Args:
        model (`BlipForVisualReasoning`):
            The model; its mode, device and dtype are left as they are.
        processor (`BlipProcessor`):
            The processor it was trained with.
        dataset ([`~blip_hf.data.nlvr2.Nlvr2Dataset`] or sequence of records):
            Records `{"images", "sentence", "label"}`, and `sentence_id` where sentences have one.
        batch_size (`int`, *optional*, defaults to 32):
            Pairs of one batch.

    Returns:
        `Nlvr2Result`: the metrics and each verdict.

    Raises:
        ValueError: If the data set has a transform, or no record can be used.

    Example:
        ```python
        result = evaluate_nlvr2(model, processor, load_nlvr2("dev.json", image_root="images/dev"))
        print(result.accuracy, result.consistency)
        ```
    """
    if not isinstance(dataset, Nlvr2Dataset):
        dataset = Nlvr2Dataset(dataset)
    if dataset.transform is not None:
        raise ValueError("the data set has a transform, which would change what is measured. Make one without it.")
    collator = BlipNlvr2Collator(processor)
    predictions: list[bool | None] = [None] * len(dataset)
    labels, sentence_ids = [], []
    with evaluating(model):
        for start in range(0, len(dataset), batch_size):
            numbers = range(start, min(start + batch_size, len(dataset)))
            pairs = {number: pair for number in numbers if (pair := dataset.get(number)) is not None}
            if not pairs:
                continue
            labels += [pair["label"] for pair in pairs.values()]
            sentence_ids += [pair["sentence_id"] for pair in pairs.values()]
            for number, verdict in zip(pairs, _judge(model, collator(list(pairs.values()))), strict=True):
                predictions[number] = verdict
    if not labels:
        raise ValueError(f"none of the {len(dataset)} records can be used; the warnings above say why.")
    judged = [prediction for prediction in predictions if prediction is not None]
    return Nlvr2Result(
        **reasoning_metrics(judged, labels, sentence_ids),
        num_pairs=len(judged),
        num_skipped=len(dataset) - len(judged),
        predictions=predictions,
    )


def _judge(model: BlipForVisualReasoning, batch: dict[str, Tensor]) -> list[bool]:
    inputs = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
    return model(**inputs).logits.argmax(dim=-1).bool().tolist()


__all__ = ["Nlvr2Result", "evaluate_nlvr2", "reasoning_metrics"]
