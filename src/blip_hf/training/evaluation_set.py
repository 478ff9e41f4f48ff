# SPDX-License-Identifier: BSD-3-Clause
"""Each record of an evaluation counts once, whatever is left out and however many processes share the set."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset

from ..data.pairs import next_usable


# Key of a batch that says whether it counts; the trainer takes it out.
IS_COUNTED = "is_counted"


class PadToWorldSize(Dataset):
    """A set padded with `None`, which is left out, in place of the copies of its first records that accelerate adds.

    Args:
        dataset (`Dataset`):
            Map-style.
        round_size (`int`):
            Records that all processes together take at a time; the length is a multiple of it.
    """

    def __init__(self, dataset: Dataset, round_size: int) -> None:
        self.dataset = dataset
        self.round_size = round_size

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.round_size) * self.round_size

    def __getitem__(self, i: int) -> Any:
        return self.dataset[i] if i < len(self.dataset) else None


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


__all__ = ["IS_COUNTED", "MarkingCollator", "PadToWorldSize"]
