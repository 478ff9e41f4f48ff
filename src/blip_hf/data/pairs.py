# SPDX-License-Identifier: BSD-3-Clause
"""Image-text pairs as a torch data set: opened, normalised, transformed, and robust against broken records."""

import operator
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import datasets
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers.utils import logging

from ..image_utils import UnreadableImageError, open_image
from .scenes import Scenes
from .text import pre_caption


logger = logging.get_logger(__name__)

PairTransform = Callable[[Image.Image, str, random.Random], tuple[Image.Image, str]]

NUM_NAMED_SKIPS = 3
# So many unusable records in a row are no broken images, but a wrong folder.
MAX_MISSES = 100


class Pair(TypedDict):
    """An image-text pair, ready for a collator."""

    image: Image.Image
    caption: str
    image_id: int


class PairDataset(Dataset):
    """Map-style data set over records `{"image", "caption", "image_id"}`, one item a caption.

    A record whose image cannot be read, or whose caption is empty once normalised, does not stop a run. Its item is
    `None`, which the collators leave out, a warning names the first few of them, and `num_skipped` counts them. For a
    batch of nothing but such records, [`BlipTrainer`] and [`BlipContrastiveTrainer`] have another one ready; a stock `Trainer`
    has it from [`FilledBatches`].

    The randomness of item `i` depends on the seed, the epoch and `i` alone: not on the order in which items are fetched,
    nor on the number of workers or processes.

    Args:
        pairs (sequence of records):
            What [`~blip_hf.data.readers.load_pairs`] returns, [`~blip_hf.data.scenes.Scenes`], or a list. An image may
            have any form that [`~blip_hf.image_utils.open_image`] takes.
        transform (`Callable`, *optional*):
            Maps image, caption and a `random.Random` to an image and a caption, as
            [`~blip_hf.data.transforms.TrainTransform`] does.
        seed (`int`, *optional*, defaults to 0):
            Seed of the transform.
        max_words (`int`, *optional*, defaults to 30):
            How many words of a caption to keep. BLIP keeps 30.
        normalize_captions (`bool`, *optional*, defaults to `True`):
            Whether captions go through [`~blip_hf.data.text.pre_caption`]. Without it `max_words` has no effect.

    Raises:
        ValueError: If there are no pairs.

    Example:
        >>> pairs = PairDataset([{"image": Image.new("L", (8, 8)), "caption": "A grey square!", "image_id": 5}])
        >>> pairs[0]["caption"], pairs[0]["image"].mode, pairs[0]["image_id"]
        ('a grey square', 'RGB', 5)
    """

    text_field = "caption"
    _normalize = staticmethod(pre_caption)

    def __init__(
        self,
        pairs: Sequence[Mapping[str, Any]],
        transform: PairTransform | None = None,
        seed: int = 0,
        max_words: int = 30,
        normalize_captions: bool = True,
    ) -> None:
        if len(pairs) == 0:
            raise ValueError("There are no pairs; pass a sequence of at least one record.")
        self.pairs = pairs
        self.transform = transform
        self.seed = seed
        self.max_words = max_words
        self.normalize_captions = normalize_captions
        # In shared memory, so that workers that live on see a new epoch and report what they skip. One flag a record
        # needs no lock: whoever raises it, and however often, it is up.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._is_skipped = torch.zeros(len(pairs), dtype=torch.bool).share_memory_()
        self._skips = SkipReporter()

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def num_skipped(self) -> int:
        """How many records have been left out so far, in this process and its workers, each counted once."""
        return int(self._is_skipped.sum())

    def caption_lengths(self) -> list[int]:
        """Words of each caption as it is written, by which batches can be grouped; no image is opened."""
        captions = self.pairs["caption"] if isinstance(self.pairs, datasets.Dataset) else _captions(self.pairs)
        return [len(caption.split()) for caption in captions]

    def set_epoch(self, epoch: int) -> None:
        """Gives the transform fresh randomness; the same epoch repeats the same."""
        self._epoch.fill_(epoch)

    def __getitem__(self, i: int) -> Pair | None:
        index = range(len(self))[operator.index(i)]
        record = self.pairs[index]
        text = record[self.text_field]
        if self.normalize_captions:
            text = self._normalize(text, max_words=self.max_words)
        if not text.strip():
            self._skip(index, f"its {self.text_field} {record[self.text_field]!r} has no words left")
            return None
        try:
            images = self._open(record)
        except UnreadableImageError as error:
            self._skip(index, str(error))
            return None
        return self._make_item(record, images, text, self._rng(index))

    # What data sets of other records have otherwise.

    def _open(self, record: Mapping[str, Any]) -> Any:
        return open_image(record["image"])

    def _make_item(self, record: Mapping[str, Any], image: Image.Image, caption: str, rng: random.Random) -> Pair:
        if self.transform is not None:
            image, caption = self.transform(image, caption, rng)
        return {"image": image, "caption": caption, "image_id": record["image_id"]}

    def _rng(self, index: int) -> random.Random:
        # A string is hashed the same way on every machine and in every process.
        return random.Random(f"{self.seed}/{self._epoch.item()}/{index}")

    def _skip(self, index: int, reason: str) -> None:
        if not self._is_skipped[index]:
            self._is_skipped[index] = True
            self._skips.report(f"record {index}: {reason}")


class FilledBatches(Dataset):
    """Pairs to train on of which no batch is empty: where no record of one can be used, the next usable one is there.

    The stand-in depends on the indices of the batch alone, so that a run can be repeated and resumed, and a process of
    several has a batch whenever the others have. [`BlipTrainer`] and [`BlipContrastiveTrainer`] do this to their training set.

    Args:
        pairs ([`PairDataset`]):
            The pairs.

    Example:
        >>> lost = {"image": "lost.jpg", "caption": "a grey square", "image_id": 4}
        >>> pairs = PairDataset([lost, {"image": Image.new("L", (8, 8)), "caption": "a square", "image_id": 5}])
        >>> batch = next(iter(torch.utils.data.DataLoader(FilledBatches(pairs), batch_size=1, collate_fn=list)))
        >>> [pair["image_id"] for pair in batch], pairs.num_skipped
        ([5], 1)
    """

    def __init__(self, pairs: PairDataset) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> Pair | None:
        return self.pairs[i]

    def __getitems__(self, indices: Sequence[int]) -> list[Pair | None]:
        # Data loaders call this with the indices of a batch.
        items = [self.pairs[i] for i in indices]
        return items if any(item is not None for item in items) else [next_usable(self.pairs, indices[-1] + 1)]

    @property
    def num_skipped(self) -> int:
        """As [`PairDataset.num_skipped`]."""
        return self.pairs.num_skipped

    def caption_lengths(self) -> list[int]:
        """As [`PairDataset.caption_lengths`]."""
        return self.pairs.caption_lengths()

    def set_epoch(self, epoch: int) -> None:
        """As [`PairDataset.set_epoch`]."""
        self.pairs.set_epoch(epoch)


def next_usable(dataset: Dataset, start: int) -> Any:
    """The first item from an index on that is not left out, round the end of the set.

    Args:
        dataset (`Dataset`):
            Map-style, with `None` for records that are left out.
        start (`int`):
            Where to begin.

    Returns:
        The item.

    Raises:
        ValueError: If there is none among the next 100.
    """
    num_tries = min(MAX_MISSES, len(dataset))
    for i in range(start, start + num_tries):
        item = dataset[i % len(dataset)]
        if item is not None:
            return item
    raise ValueError(
        f"None of the {num_tries} records from number {start % len(dataset)} on can be used; the warnings say why."
        " Check that image paths start from the right folder (`image_root` of `load_pairs`)."
    )


def _captions(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    return pairs.captions() if isinstance(pairs, Scenes) else [pair["caption"] for pair in pairs]


class SkipReporter:
    """Warns of the first few records that are left out by name, and then of every tenfold number of them."""

    def __init__(self) -> None:
        self.num_reports = 0

    def report(self, reason: str) -> None:
        """Counts one more record, and logs it or the count where it is due."""
        self.num_reports += 1
        if self.num_reports <= NUM_NAMED_SKIPS:
            logger.warning(f"Left out {reason}")
        elif str(self.num_reports).strip("0") == "1":  # 10, 100, 1000, ...
            logger.warning(f"Left out {self.num_reports} records so far (in this process), the latest {reason}")


__all__ = ["FilledBatches", "Pair", "PairDataset", "PairTransform", "SkipReporter", "next_usable"]
