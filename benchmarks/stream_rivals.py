# SPDX-License-Identifier: BSD-3-Clause
"""Streams of decoded image-text pairs by `webdataset` and `datasets` alone, for `benchmarks.streams`.

Both skip bad records without counting them. Each batch is a list of pairs.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest.mock import patch

from PIL import Image
from torch.utils.data import DataLoader


Pairs = list[tuple[Image.Image, str]]


def read_webdataset(
    paths: Sequence[str], *, buffer_size: int, batch_size: int, num_workers: int = 0
) -> Iterator[Pairs]:
    """Pairs by `webdataset`, shuffled if `buffer_size` is not 0."""
    import webdataset

    handler = webdataset.ignore_and_continue
    shards = webdataset.WebDataset(list(paths), shardshuffle=len(paths) if buffer_size else False, handler=handler)
    pairs = shards.shuffle(buffer_size).decode("pil", handler=handler).to_tuple("jpg", "txt", handler=handler)
    return iter(DataLoader(pairs, batch_size, collate_fn=list, num_workers=num_workers))


def read_datasets(paths: Sequence[str], *, buffer_size: int, batch_size: int, num_workers: int = 0) -> Iterator[Pairs]:
    """Pairs by `datasets`, shuffled if `buffer_size` is not 0.

    A broken image, text or JSON ends its stream, so texts and images are decoded here.
    """
    import datasets
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    with patch.dict(WebDataset.DECODERS, clear=True):
        records = datasets.load_dataset("webdataset", data_files=list(paths), split="train", streaming=True)
        records = records.select_columns(["jpg", "txt"]).cast_column("jpg", datasets.Image(decode=False))
        if buffer_size:
            records = records.shuffle(seed=0, buffer_size=buffer_size)
        yield from DataLoader(records, batch_size, collate_fn=_decode, num_workers=num_workers)


def _decode(records: Sequence[Mapping[str, Any]]) -> Pairs:
    pairs = []
    for record in records:
        try:
            with Image.open(io.BytesIO(record["jpg"]["bytes"])) as image:
                pairs.append((image.convert("RGB"), record["txt"].decode()))
        except Exception:  # decoders raise many exceptions for a broken file
            continue
    return pairs


__all__ = ["read_datasets", "read_webdataset"]
