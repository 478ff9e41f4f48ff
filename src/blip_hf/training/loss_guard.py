# SPDX-License-Identifier: BSD-3-Clause
"""Stops a training or an evaluation whose loss is not finite, without waiting for the device at each step."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..finite import NotFiniteError, name_ids


# On an accelerator, losses are looked at when a log or a checkpoint waits for the device anyway, or when there are so many.
MAX_PENDING = 100


# Key of a batch: the ids of its records.
RECORD_IDS = "record_ids"
_ID_FIELDS = ("question_id", "sentence_id", "image_id", "image_ids")


class NamingCollator:
    """Adds the ids of the records to the batch of another collator, for the message about a loss."""

    def __init__(self, collator: Callable[[Sequence[Any]], dict[str, Any]]) -> None:
        self.collator = collator

    def __call__(self, records: Sequence[Any]) -> dict[str, Any]:
        """Makes a batch."""
        batch = self.collator(records)
        fields = [name for name in _ID_FIELDS if isinstance(records[0], Mapping) and name in records[0]]
        if not fields:
            return batch
        ids = [record[fields[0]] for record in records]
        return {**batch, RECORD_IDS: [value.item() if isinstance(value, Tensor) else value for value in ids]}


class LossGuard:
    """Remembers the losses of the last steps with the ids of their batches, and raises if one is not finite."""

    def __init__(self) -> None:
        self._pending: list[tuple[str, Tensor, Sequence[Any]]] = []

    def add(self, step: int, loss: Tensor, ids: Sequence[Any]) -> None:
        """Remembers the loss of a training step; on the CPU, checks it at once."""
        self._pending.append((f"training loss of step {step}", loss.detach().float(), ids))
        if loss.device.type == "cpu" or len(self._pending) >= MAX_PENDING:
            self.check()

    def check(self) -> None:
        """Raises a `NotFiniteError` for the first loss since the last call that is not finite."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        values = torch.stack([loss for _, loss, _ in pending]).tolist()
        for (name, _, ids), value in zip(pending, values, strict=True):
            if not math.isfinite(value):
                raise _loss_error(name, value, ids)


class EvaluationLossGuard:
    """Remembers the losses of an evaluation with the ids of their batches, for the message about their mean."""

    def __init__(self) -> None:
        self._losses: list[tuple[Tensor, Sequence[Any]]] = []

    def add(self, loss: Tensor, ids: Sequence[Any]) -> None:
        """Remembers the loss of a batch."""
        self._losses.append((loss.detach().float(), ids))

    def check(self, mean: float | None, step: int) -> None:
        """Raises a `NotFiniteError` if the mean over all processes is not finite, so that all of them stop."""
        if mean is None or math.isfinite(mean):
            return
        values = torch.stack([loss for loss, _ in self._losses]).tolist()
        bad_ids = (ids for value, (_, ids) in zip(values, self._losses, strict=True) if not math.isfinite(value))
        raise _loss_error(f"evaluation loss after step {step}", mean, next(bad_ids, ()))


def _loss_error(name: str, value: float, ids: Sequence[Any]) -> NotFiniteError:
    records = f" for the records {name_ids(ids)}" if len(ids) else ""
    return NotFiniteError(
        f"The {name} is {value}{records}. Lower `learning_rate`, set `max_grad_norm`, or check these records, and resume"
        " from the last checkpoint. `stop_on_nan=False` continues, but saves no weights with NaN."
    )


__all__ = ["RECORD_IDS", "EvaluationLossGuard", "LossGuard", "NamingCollator"]
