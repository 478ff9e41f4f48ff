# SPDX-License-Identifier: BSD-3-Clause
"""Image-text pairs as a torch data set: opens, normalises and transforms records, and skips unusable ones."""

import operator
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, get_args

import datasets
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers.utils import logging

from ..distributed import gather_objects
from ..image_utils import UnreadableImageError, open_image
from .readers.samples import Reason
from .scenes import Scenes
from .skips import SkipCounts, image_reason
from .text import pre_caption


logger = logging.get_logger(__name__)

PairTransform = Callable[[Image.Image, str, random.Random], tuple[Image.Image, str]]
# Of the images of a record, which may be a list.
_Transform = Callable[[Any, str, random.Random], tuple[Any, str]]

NUM_NAMED_SKIPS = 3
# Outcomes of reading a record: 0 for none yet, 1 for a usable one, then the reasons.
_USABLE = 1
_REASONS = get_args(Reason)
# This many unusable records in a row point to a wrong folder rather than broken images.
MAX_MISSES = 100


class Pair(TypedDict):
    """An image-text pair, ready for a collator."""

    image: Image.Image
    caption: str
    image_id: int


# `Pair`, or the item of a subclass.
if TYPE_CHECKING:
    import typing_extensions

    Item = typing_extensions.TypeVar("Item", default=Pair)
else:
    Item = TypeVar("Item")


class PairDataset(Dataset[Item]):
    """Map-style data set over records `{"image", "caption", "image_id"}`, one item per caption.

    A record is unusable if its image cannot be read or its normalised caption is empty. The next usable record
    replaces it, a warning names the first three unusable ones, and `skip_counts` counts them by reason.

    The random numbers of item `i` depend only on the seed, the epoch and `i`, not on the number of workers or
    processes.

    Args:
        pairs (sequence of records):
            The output of [`~blip_hf.data.readers.load_pairs`], [`~blip_hf.data.scenes.Scenes`], or a list.
            [`~blip_hf.image_utils.open_image`] reads the images.
        transform (`Callable`, *optional*):
            Maps image, caption and a `random.Random` to an image and a caption, such as
            [`~blip_hf.data.transforms.TrainTransform`].
        max_words (`int`, *optional*, defaults to 30):
            Maximum number of words of a normalised caption, as in BLIP.
        normalize_captions (`bool`, *optional*, defaults to `True`):
            Whether to normalise captions with [`~blip_hf.data.text.pre_caption`].

    Raises:
        ValueError: If there are no pairs, or, when an item is fetched, if 100 records in a row are unusable.

    Example:
        >>> lost = {"image": "lost.jpg", "caption": "A lost square", "image_id": 4}
        >>> grey = {"image": Image.new("L", (8, 8)), "caption": "A grey square!", "image_id": 5}
        >>> pairs = PairDataset([lost, grey])
        >>> pairs[1]["caption"], pairs[1]["image"].mode, pairs[1]["image_id"]
        ('a grey square', 'RGB', 5)
        >>> pairs[0]["caption"], pairs.num_skipped
        ('a grey square', 1)
    """

    text_field = "caption"
    _normalize = staticmethod(pre_caption)

    def __init__(
        self,
        pairs: Sequence[Mapping[str, Any]],
        transform: _Transform | None = None,
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
        # In shared memory, so that persistent workers see a new epoch and report skipped records.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._outcomes = torch.zeros(len(pairs), dtype=torch.int8).share_memory_()
        self._skips = SkipReporter()

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> Item:
        index = self._index(i)
        num_tries = min(MAX_MISSES, len(self))
        for number in range(index, index + num_tries):
            item = self._read(number % len(self), self._rng(index))
            if item is not None:
                return item
        raise ValueError(
            f"None of the {num_tries} records from number {index} on can be used; the warnings say why."
            " Check that image paths start from the right folder (`image_root` of `load_pairs`)."
        )

    def get(self, i: int) -> Item | None:
        """Item `i` itself, or `None` if its record is unusable."""
        index = self._index(i)
        return self._read(index, self._rng(index))

    @property
    def num_skipped(self) -> int:
        """Number of unusable records found so far, in this process and its workers."""
        return int((self._outcomes > _USABLE).sum())

    def skip_counts(self, *, all_processes: bool = False) -> SkipCounts:
        """Counts of the records that this process and its workers, or all processes, found usable or not, each once."""
        outcomes = torch.stack(gather_objects([self._outcomes])).amax(0) if all_processes else self._outcomes
        counts = SkipCounts(int((outcomes == _USABLE).sum()))
        for outcome, reason in enumerate(_REASONS, _USABLE + 1):
            records = (outcomes == outcome).nonzero()
            if len(records):
                counts.by_reason[reason] = len(records)
                counts.first[reason] = f"record {int(records[0])}"
        return counts

    def caption_lengths(self) -> list[int]:
        """Number of words of each text; opens no image."""
        if isinstance(self.pairs, datasets.Dataset):
            texts = self.pairs[self.text_field]
        elif isinstance(self.pairs, Scenes):
            texts = self.pairs.captions()
        else:
            texts = [record[self.text_field] for record in self.pairs]
        return [len(text.split()) for text in texts]

    def set_epoch(self, epoch: int) -> None:
        """Seeds the transform for an epoch."""
        self._epoch.fill_(epoch)

    def _read(self, index: int, rng: random.Random) -> Item | None:
        record = self.pairs[index]
        text = record[self.text_field]
        if self.normalize_captions:
            text = self._normalize(text, max_words=self.max_words)
        if not text.strip():
            detail = f"its {self.text_field} {record[self.text_field]!r} has no words left"
            self._skip(index, "empty_text", detail)
            return None
        try:
            images = self._open(record)
        except UnreadableImageError as error:
            self._skip(index, image_reason(error.kind), str(error))
            return None
        self._outcomes[index] = _USABLE
        return self._make_item(record, images, text, rng)

    # Subclasses for other records override these two.

    def _open(self, record: Mapping[str, Any]) -> Any:
        return open_image(record["image"])

    def _make_item(self, record: Mapping[str, Any], image: Any, caption: str, rng: random.Random) -> Any:
        if self.transform is not None:
            image, caption = self.transform(image, caption, rng)
        return {"image": image, "caption": caption, "image_id": record["image_id"]}

    def _index(self, i: int) -> int:
        return range(len(self))[operator.index(i)]

    def _rng(self, index: int) -> random.Random:
        # A string is hashed the same way on every machine and in every process.
        return random.Random(f"{self.seed}/{self._epoch.item()}/{index}")

    def _skip(self, index: int, reason: Reason, detail: str) -> None:
        outcome = _REASONS.index(reason) + _USABLE + 1
        if self._outcomes[index] != outcome:
            self._outcomes[index] = outcome
            self._skips.report(f"record {index}: {detail}")


class SkipReporter:
    """Warns about the first three skipped records, and then about the 10th, 100th, 1000th, ..."""

    def __init__(self) -> None:
        self.num_reports = 0

    def report(self, reason: str) -> None:
        """Counts a skipped record, and warns about some of them."""
        self.num_reports += 1
        if self.num_reports <= NUM_NAMED_SKIPS:
            logger.warning(f"Skipped {reason}")
        elif str(self.num_reports).strip("0") == "1":  # 10, 100, 1000, ...
            logger.warning(f"Skipped {self.num_reports} records so far (in this process), most recently {reason}")


__all__ = ["Pair", "PairDataset", "PairTransform", "SkipReporter"]
