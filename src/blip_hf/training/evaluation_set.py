# SPDX-License-Identifier: BSD-3-Clause
"""Evaluation sets in which each usable record counts once, on any number of processes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from ..data.pairs import PairDataset
from ..distributed import gather, rank, world_size


# Key of a batch: whether it counts in the metrics.
IS_COUNTED = "is_counted"


def usable_subset(dataset: PairDataset, *, num_workers: int, device: torch.device) -> Subset:
    """The usable records of a set. Each process opens the images of its share once."""
    dataset[0]  # raises for a wrong folder before the whole set is read
    own: Any = range(rank(), len(dataset), world_size())
    checks: DataLoader[list[int]] = DataLoader(
        own,
        batch_size=64,
        num_workers=num_workers,
        collate_fn=_UsableIndices(dataset),
        generator=torch.Generator(),  # keeps the random state of training
    )
    usable = torch.tensor([i for indices in checks for i in indices], dtype=torch.long, device=device)
    return Subset(dataset, gather(usable).sort().values.tolist())


class _UsableIndices:
    def __init__(self, dataset: PairDataset) -> None:
        self.dataset = dataset

    def __call__(self, indices: Sequence[int]) -> list[int]:
        return [i for i in indices if self.dataset.get(i) is not None]


class PadToWorldSize(Dataset):
    """Pads a data set with `None` to a multiple of `round_size`; accelerate would repeat its first records."""

    def __init__(self, dataset: Dataset, round_size: int) -> None:
        self.dataset: Any = dataset  # with a length
        self.round_size = round_size

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.round_size) * self.round_size

    def __getitem__(self, i: int) -> Any:
        return self.dataset[i] if i < len(self.dataset) else None


class PaddingCollator:
    """Drops the padding of [`PadToWorldSize`]. A batch of padding alone becomes the first record and does not count.

    The model runs on that batch too, because other processes wait for its metrics.
    """

    def __init__(self, collator: Callable[[Sequence[Any]], dict[str, Any]], dataset: Dataset) -> None:
        self.collator = collator
        self.dataset = dataset

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        """Makes a batch and says whether it counts."""
        records = [item for item in items if item is not None]
        return {**self.collator(records or [self.dataset[0]]), IS_COUNTED: bool(records)}


__all__ = ["IS_COUNTED", "PadToWorldSize", "PaddingCollator", "usable_subset"]
