# SPDX-License-Identifier: BSD-3-Clause
"""Orders of an epoch: random, or in batches of captions of similar length, which need less padding."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


# Batches that are sorted together: enough for similar lengths, few enough to keep batches random.
BATCHES_PER_CHUNK = 20


# Indices that are Python integers at a time.
INDICES_PER_CHUNK = 2**16


class ShuffleSampler(Sampler[int]):
    """Samples in random order, seeded by the epoch, with 8 bytes a record; those of torch (2.13) take some 40.

    The order is that of accelerate's `SeedableRandomSampler`, which `transformers.Trainer` uses.

    Example:
        >>> sampler = ShuffleSampler(4, seed=0)
        >>> sorted(sampler)
        [0, 1, 2, 3]
    """

    def __init__(self, num_records: int, seed: int) -> None:
        self.num_records = num_records
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Seeds the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_records

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        for chunk in torch.randperm(self.num_records, generator=generator).split(INDICES_PER_CHUNK):
            yield from chunk.tolist()


class CaptionLengthSampler(Sampler[int]):
    """Samples batches of similar length: shuffles, sorts each chunk of batches by length, and shuffles its batches.

    Example:
        >>> sampler = CaptionLengthSampler([9, 2, 9, 2], batch_size=2, seed=0)
        >>> first, second = torch.tensor(list(sampler)).split(2)
        >>> sorted([sorted(first.tolist()), sorted(second.tolist())])
        [[0, 2], [1, 3]]
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = torch.tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Seeds the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        for chunk in order.split(BATCHES_PER_CHUNK * self.batch_size):
            batches = chunk[self.lengths[chunk].argsort(stable=True)].split(self.batch_size)
            for number in torch.randperm(len(batches), generator=generator).tolist():
                yield from batches[number].tolist()


__all__ = ["BATCHES_PER_CHUNK", "CaptionLengthSampler", "ShuffleSampler"]
