# SPDX-License-Identifier: BSD-3-Clause
"""NLVR2 (sentences about two images): data set, training transform and collator."""

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
from .transforms import FlipMode, TrainTransform, mirror_caption


Nlvr2Transform = Callable[[list[Image.Image], str, random.Random], tuple[list[Image.Image], str]]


class Nlvr2Pair(TypedDict):
    """Two images, left and right, a sentence and its label. `sentence_id` groups pairs for the consistency metric."""

    images: list[Image.Image]
    sentence: str
    label: bool
    sentence_id: str


class Nlvr2TrainTransform:
    """Random crop and RandomAugment of each image, and a random flip of the pair.

    Args:
        size (`int`):
            Width and height of the results in pixels.
        min_scale (`float`, *optional*, defaults to 0.5):
            Minimum area of a crop, as a fraction of the image. BLIP fine-tunes with 0.5.
        flip (`str`, *optional*, defaults to `"caption_aware"`):
            How to flip a pair, with probability 0.5. `"caption_aware"` mirrors and swaps both images, and swaps left and
            right in the sentence, so its label stays true. `"always"` does what BLIP does: it swaps the images, and left and
            right in the sentence, and mirrors each image with probability 0.5. `"never"` does not flip.
        augment (`bool`, *optional*, defaults to `True`):
            Whether to apply [`~blip_hf.data.augment.RandomAugment`].
    """

    def __init__(
        self, size: int, *, min_scale: float = 0.5, flip: FlipMode = "caption_aware", augment: bool = True
    ) -> None:
        image_flip = "never" if flip == "caption_aware" else flip
        self.image_transform = TrainTransform(size, min_scale=min_scale, flip=image_flip, augment=augment)
        self.flip = flip

    def __call__(self, images: list[Image.Image], sentence: str, rng: random.Random) -> tuple[list[Image.Image], str]:
        """Transforms two RGB images and their sentence; the label stays the same."""
        images = [self.image_transform(image, "", rng)[0] for image in images]
        if rng.random() < 0.5 or self.flip == "never":
            return images, sentence
        if self.flip == "caption_aware":
            images = [ImageOps.mirror(image) for image in images]
        return images[::-1], mirror_caption(sentence)


class Nlvr2Dataset(PairDataset[Nlvr2Pair]):
    """Map-style data set over records `{"images", "sentence", "label"}`; skips unusable ones as [`PairDataset`] does.

    `records` come from [`~blip_hf.data.readers.load_nlvr2`], [`~blip_hf.data.scenes.SceneNlvr2`], or a list;
    `sentence_id` defaults to the sentence. The transform receives both images. Other arguments are as in
    [`PairDataset`]; BLIP keeps 40 words of a sentence.

    Example:
        >>> grey, red = Image.new("L", (8, 8)), Image.new("RGB", (8, 8), "red")
        >>> pairs = Nlvr2Dataset([{"images": [grey, red], "sentence": "Both are red.", "label": False}])
        >>> pairs[0]["sentence"], pairs[0]["images"][0].mode, pairs[0]["label"]
        ('both are red', 'RGB', False)
    """

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
    """Converts image pairs with sentences to the inputs and labels of [`BlipForVisualReasoning`]. Rows start with `[ENC]`.

    Maps records `{"images", "sentence", "label"}` to `pixel_values` of shape `(b, 2, 3, size, size)`, `input_ids` and
    `attention_mask` of shape `(b, t)`, and `labels` of shape `(b,)`, int64, 1 for true. As in BLIP, sentences are not
    truncated below BERT's 512 positions.
    """

    role = "matching"

    def __init__(self, processor: BlipProcessor, max_length: int = 512) -> None:
        super().__init__(processor, max_length)

    def __call__(self, records: Sequence[Record]) -> dict[str, torch.Tensor]:
        """Makes a batch; raises a ValueError if no pair of images can be read."""
        pairs = self._open_records(records)
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

    def _open_record(self, record: Record) -> dict[str, Any]:
        return {**record, "images": [open_image(image) for image in record["images"]]}


__all__ = [
    "BlipNlvr2Collator",
    "Nlvr2Dataset",
    "Nlvr2Pair",
    "Nlvr2TrainTransform",
    "Nlvr2Transform",
]
