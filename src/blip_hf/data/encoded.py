# SPDX-License-Identifier: BSD-3-Clause
"""Pairs as tensors in memory: read, resized and tokenized once instead of in each epoch."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import default_data_collator

from .collators import PairCollator
from .pairs import PairDataset
from .skips import SkipCounts


Batch = dict[str, Tensor]

_CHUNK_SIZE = 256
_TEXT_COLUMNS = ("input_ids", "attention_mask", "labels")  # (n, t) each


class EncodedPairs(Dataset[Batch]):
    """The tensors that a collator makes of each usable pair; texts are padded to the longest of the data set.

    Pass `data_collator=EncodedPairs.collate` to the trainer, and pairs without a random transform. With
    `equal_captions_share_id`, pairs of the same caption get the same `image_ids`, so they are not negatives of each
    other.
    """

    def __init__(self, pairs: PairDataset, collator: PairCollator, *, equal_captions_share_id: bool = False) -> None:
        pairs[0]  # raises for a wrong folder before the whole set is read
        self.captions: list[str] = []
        chunks = []
        for indices in torch.arange(len(pairs)).split(_CHUNK_SIZE):
            items = [item for i in indices.tolist() if (item := pairs.get(i)) is not None]
            if items:
                texts: list[Any] = items  # with the field of the data set
                self.captions += [item[pairs.text_field] for item in texts]
                chunks.append(collator(items))
        self.num_skipped = pairs.num_skipped
        self._skip_counts = pairs.skip_counts()
        padding = {"input_ids": collator.processor.tokenizer.pad_token_id, "attention_mask": 0, "labels": -100}
        self.columns = {
            name: _concatenate([chunk[name] for chunk in chunks], padding.get(name)) for name in chunks[0]
        }  # (n, ...) each
        if equal_captions_share_id:
            ids = {caption: i for i, caption in enumerate(dict.fromkeys(self.captions))}
            self.columns["image_ids"] = torch.tensor([ids[caption] for caption in self.captions])

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, i: int) -> Batch:
        return {name: column[i] for name, column in self.columns.items()}

    def skip_counts(self, *, all_processes: bool = False) -> SkipCounts:
        """Counts of skipped records; each process reads all records."""
        return self._skip_counts

    def caption_lengths(self) -> list[int]:
        """Number of tokens of each text."""
        return self.columns["attention_mask"].sum(dim=1).tolist()

    @staticmethod
    def collate(items: list[Batch]) -> Batch:
        """Stacks items and cuts their texts to the longest among them."""
        batch = default_data_collator(items)
        length = int(batch["attention_mask"].sum(dim=1).max())
        return {name: column[:, :length] if name in _TEXT_COLUMNS else column for name, column in batch.items()}


def _concatenate(chunks: list[Tensor], padding: int | None) -> Tensor:
    """Rows of all chunks; those of text, `(b, t)`, are padded on the right to a common length."""
    if padding is None:
        return torch.cat(chunks)
    length = max(chunk.shape[1] for chunk in chunks)
    return torch.cat([torch.nn.functional.pad(chunk, (0, length - chunk.shape[1]), value=padding) for chunk in chunks])


__all__ = ["EncodedPairs"]
