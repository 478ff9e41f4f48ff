# SPDX-License-Identifier: BSD-3-Clause
"""Each record of an evaluation counts once, whatever is left out."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset

from ..data.pairs import next_usable


# Key of a batch that says whether it counts; the trainer takes it out.
IS_COUNTED = "is_counted"


class MarkingCollator:
    """Marks batches that do not count: those of no usable record, for which another one stands in.

    The stand-in runs through the model all the same, as the other processes may wait for this one there.

    Args:
        collator (`Callable`):
            Makes batches of items that are not `None`.
        dataset (`Dataset`):
            Where the stand-in comes from.
    """

    def __init__(self, collator: Callable[[Sequence[Any]], dict[str, Any]], dataset: Dataset) -> None:
        self.collator = collator
        self.dataset = dataset

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        """Makes a batch.

        Args:
            items (`Sequence`):
                Items of the set; `None` is left out.

        Returns:
            `dict`: The batch, and whether it counts.

        Raises:
            ValueError: If no record can be used, and none of the first 100 of the set.
        """
        usable = [item for item in items if item is not None]
        batch = self.collator(usable or [next_usable(self.dataset, start=0)])
        return {**batch, IS_COUNTED: bool(usable)}


__all__ = ["IS_COUNTED", "MarkingCollator"]
