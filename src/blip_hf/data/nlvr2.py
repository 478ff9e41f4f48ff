# SPDX-License-Identifier: BSD-3-Clause
"""Sentences about two images (NLVR2): annotation files, drawn scenes, the data set, its transform and its collator."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from PIL import Image, ImageOps

from ..image_utils import open_image
from ..processing_blip import BlipProcessor
from .collators import PairCollator
from .pairs import PairDataset
from .readers.records import Record
from .scenes import Nlvr2Record, Scenes
from .transforms import FlipMode, TrainTransform, mirror_caption


Nlvr2Transform = Callable[[list[Image.Image], str, random.Random], tuple[list[Image.Image], str]]


class Nlvr2Pair(TypedDict):
    """Two images, the first (left) one first, a sentence about them and its truth, ready for the collator.

    Pairs of equal `sentence_id` share their sentence; consistency asks for all of them.
    """

    images: list[Image.Image]
    sentence: str
    label: bool
    sentence_id: str


class SceneNlvr2(Sequence[Nlvr2Record]):
    """Pairs of drawn images with a sentence such as "both pictures show a star", true of every second pair.

    Record `i` depends on the seed and on `start + i` only, and is [`~blip_hf.data.scenes.Scenes.reasoning`] of it: one
    of its scenes is in the stretch, the other one in no other record.

    Args:
        num_pairs (`int`):
            Number of records.
        start (`int`, *optional*, defaults to 0):
            Index of the first one.
        seed (`int`, *optional*, defaults to 0):
            Seed of the whole series.
        image_size (`int`, *optional*, defaults to 64):
            Width and height of the images in pixels, at least 32.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> record = SceneNlvr2(100)[2]
        >>> record["sentence"], record["label"], [image.size for image in record["images"]]
        ('both pictures show a star', True, [(64, 64), (64, 64)])
    """

    def __init__(self, num_pairs: int, *, start: int = 0, seed: int = 0, image_size: int = 64) -> None:
        self.scenes = Scenes(num_pairs, start=start, seed=seed, image_size=image_size)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, i: int) -> Nlvr2Record:
        return self.scenes.reasoning(i)


class Nlvr2TrainTransform:
    """Random crop and RandomAugment of each image, and the pair mirrored, for training only.

    Args:
        size (`int`):
            Width and height of the results in pixels.
        min_scale (`float`, *optional*, defaults to 0.5):
            Smallest share of an image's area that a crop keeps, as BLIP fine-tunes.
        flip (`str`, *optional*, defaults to `"caption_aware"`):
            What happens to every second pair. `"caption_aware"` mirrors it as if it were one wide image: both images
            are mirrored, change places, and left and right in the sentence with them, so that it keeps its truth.
            `"always"` is BLIP's way: the images change places with left and right in the sentence, and each is
            mirrored by a chance of its own, whatever the sentence says. `"never"` leaves all in place.
        augment (`bool`, *optional*, defaults to `True`):
            Whether [`~blip_hf.data.augment.RandomAugment`] follows.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self, size: int, *, min_scale: float = 0.5, flip: FlipMode = "caption_aware", augment: bool = True
    ) -> None:
        image_flip = "never" if flip == "caption_aware" else flip
        self.image_transform = TrainTransform(size, min_scale=min_scale, flip=image_flip, augment=augment)
        self.flip = flip

    def __call__(self, images: list[Image.Image], sentence: str, rng: random.Random) -> tuple[list[Image.Image], str]:
        """Transforms one pair.

        Args:
            images (`list[PIL.Image.Image]`):
                Two RGB images of any size.
            sentence (`str`):
                What is said of them.
            rng (`random.Random`):
                Source of the randomness; its state moves on.

        Returns:
            `tuple[list[PIL.Image.Image], str]`: two images of `size` x `size`, and a sentence of the same truth.
        """
        images = [self.image_transform(image, "", rng)[0] for image in images]
        if rng.random() < 0.5 or self.flip == "never":
            return images, sentence
        if self.flip == "caption_aware":
            images = [ImageOps.mirror(image) for image in images]
        return images[::-1], mirror_caption(sentence)


class Nlvr2Dataset(PairDataset):
    """Map-style data set over records `{"images", "sentence", "label"}`, as robust as [`PairDataset`] is.

    A record of which an image cannot be read, or whose sentence is empty once normalised, gives `None`, is named in a
    warning and counted in `num_skipped`. Without a transform, as in evaluation, nothing is random.

    Args:
        records (sequence of records):
            What [`~blip_hf.data.readers.load_nlvr2`] returns, [`SceneNlvr2`], or a list. Images may have any form that
            [`~blip_hf.image_utils.open_image`] takes. `sentence_id` is the sentence itself where a record has none.
        transform (`Callable`, *optional*):
            Maps two images, the sentence and a `random.Random` to two images and a sentence, as
            [`Nlvr2TrainTransform`] does.
        seed (`int`, *optional*, defaults to 0):
            Seed of the transform.
        max_words (`int`, *optional*, defaults to 40):
            How many words of a sentence to keep. BLIP keeps 40.
        normalize_sentences (`bool`, *optional*, defaults to `True`):
            Whether sentences go through [`~blip_hf.data.text.pre_caption`]. Without it `max_words` has no effect.

    Raises:
        ValueError: If there are no records.

    Example:
        >>> grey, red = Image.new("L", (8, 8)), Image.new("RGB", (8, 8), "red")
        >>> pairs = Nlvr2Dataset([{"images": [grey, red], "sentence": "Both are red.", "label": False}])
        >>> pairs[0]["sentence"], pairs[0]["images"][0].mode, pairs[0]["label"]
        ('both are red', 'RGB', False)
    """

    transform: Nlvr2Transform | None
    text_field = "sentence"

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        transform: Nlvr2Transform | None = None,
        seed: int = 0,
        max_words: int = 40,
        normalize_sentences: bool = True,
    ) -> None:
        super().__init__(records, transform, seed, max_words, normalize_sentences)

    def caption_lengths(self) -> list[int]:
        """Words of each sentence as it is written, by which batches can be grouped."""
        return [len(record["sentence"].split()) for record in self.pairs]

    def _open(self, record: Mapping[str, Any]) -> list[Image.Image]:
        return [open_image(image) for image in record["images"]]

    def _make_item(
        self, record: Mapping[str, Any], images: list[Image.Image], sentence: str, rng: random.Random
    ) -> Nlvr2Pair:
        if self.transform is not None:
            images, sentence = self.transform(images, sentence, rng)
        sentence_id = record.get("sentence_id", record["sentence"])
        return {"images": images, "sentence": sentence, "label": bool(record["label"]), "sentence_id": sentence_id}


class BlipNlvr2Collator(PairCollator):
    """Pairs of images with sentences to the inputs and labels of [`BlipForVisualReasoning`]; rows start with `[ENC]`.

    Args:
        processor ([`BlipProcessor`]):
            What makes tensors of images and text.
        max_length (`int`, *optional*, defaults to 512):
            Longest row in tokens, `[ENC]` and `[SEP]` included: as many as BERT has positions. BLIP cuts no sentence of
            NLVR2.
    """

    role = "matching"

    def __init__(self, processor: BlipProcessor, max_length: int = 512) -> None:
        super().__init__(processor, max_length)

    def __call__(self, records: Sequence[Record | None]) -> dict[str, torch.Tensor]:
        """Makes a batch.

        Args:
            records (`Sequence[dict]`):
                Records `{"images", "sentence", "label"}`, or `None` for one that is left out.

        Returns:
            `dict[str, torch.Tensor]`: `pixel_values` of shape `(b, 2, 3, size, size)`, `input_ids` and `attention_mask` of
            shape `(b, t)`, and `labels` of shape `(b,)`, int64, 1 for true.

        Raises:
            ValueError: If no record can be used.
        """
        pairs = self._usable_pairs(records)
        features = self.processor(
            [image for pair in pairs for image in pair["images"]],
            [pair["sentence"] for pair in pairs],
            role=self.role,
            max_length=self.max_length,
            return_tensors="pt",
        )
        pixel_values = features["pixel_values"].unflatten(0, (-1, 2))  # (2 * b, ...) -> (b, 2, ...)
        labels = torch.tensor([int(pair["label"]) for pair in pairs])
        return {**features, "pixel_values": pixel_values, "labels": labels}

    def _opened(self, record: Record) -> Record:
        return {**record, "images": [open_image(image) for image in record["images"]]}


__all__ = [
    "BlipNlvr2Collator",
    "Nlvr2Dataset",
    "Nlvr2Pair",
    "Nlvr2TrainTransform",
    "Nlvr2Transform",
    "SceneNlvr2",
]
