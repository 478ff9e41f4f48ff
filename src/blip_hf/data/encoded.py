# SPDX-License-Identifier: BSD-3-Clause
"""Pairs as tensors in memory: a small set is read, resized and tokenized once, not in each epoch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import default_data_collator

from .collators import PairCollator
from .pairs import PairDataset, next_usable


_CHUNK_SIZE = 256
_TEXT_COLUMNS = ("input_ids", "attention_mask", "labels")  # (n, t) each

Batch = dict[str, Tensor]


class EncodedPairs(Dataset[Batch]):
    """What a collator makes of each pair, padded to the longest text of the set. Pairs that cannot be read are left out.

    Args:
        pairs ([`PairDataset`]):
            Pairs without a random transform, of which one view would be kept.
        collator (`PairCollator`):
            What makes tensors of them.

    Raises:
        ValueError: If none of the first 100 pairs can be used.
    """

    def __init__(self, pairs: PairDataset, collator: PairCollator) -> None:
        padding = {"input_ids": collator.processor.tokenizer.pad_token_id, "attention_mask": 0, "labels": -100}
        next_usable(pairs, start=0)  # or a wrong folder would be told of after the whole set
        starts = range(0, len(pairs), _CHUNK_SIZE)
        items = ([pairs[i] for i in range(start, min(start + _CHUNK_SIZE, len(pairs)))] for start in starts)
        chunks = [collator(chunk) for chunk in items if any(pair is not None for pair in chunk)]
        self.columns = {
            name: _stack([chunk[name] for chunk in chunks], padding.get(name)) for name in chunks[0]
        }  # (n, ...) each

    def __len__(self) -> int:
        return len(self.columns["pixel_values"])

    def __getitem__(self, i: int) -> Batch:
        return {name: column[i] for name, column in self.columns.items()}

    def caption_lengths(self) -> list[int]:
        """Tokens of each text, by which batches can be grouped."""
        return self.columns["attention_mask"].sum(dim=1).tolist()


def encoded_or(collator: PairCollator) -> Callable[[Sequence[Any]], Batch]:
    """A collator that stacks items of [`EncodedPairs`], cut to the longest text among them, and hands on all others.

    Args:
        collator (`PairCollator`):
            For pairs as they are.

    Returns:
        `Callable`: for a trainer whose sets for training and evaluation differ in this.
    """

    def collate(items: Sequence[Any]) -> Batch:
        is_encoded = items[0] is not None and isinstance(items[0].get("pixel_values"), Tensor)
        return _cut(default_data_collator(items)) if is_encoded else collator(items)

    return collate


def _cut(batch: Batch) -> Batch:
    """The batch without the columns of text that are padding in all rows."""
    length = int(batch["attention_mask"].sum(dim=1).max())
    return {name: column[:, :length] if name in _TEXT_COLUMNS else column for name, column in batch.items()}


def _stack(rows: list[Tensor], padding: int | None) -> Tensor:
    """All rows of all chunks; those of text, `(b, t)`, are padded on the right to a common length."""
    if padding is None:
        return torch.cat(rows)
    length = max(row.shape[1] for row in rows)
    return torch.cat([torch.nn.functional.pad(row, (0, length - row.shape[1]), value=padding) for row in rows])


__all__ = ["EncodedPairs", "encoded_or"]
