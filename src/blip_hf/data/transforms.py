# SPDX-License-Identifier: BSD-3-Clause
"""BLIP's training transform of an image and its caption: random crop, flip and RandomAugment."""

import math
import random
import re
from typing import Literal, get_args

from PIL import Image, ImageOps
from PIL.Image import Resampling

from .augment import RandomAugment


FlipMode = Literal["always", "caption_aware", "never"]

MIN_ASPECT, MAX_ASPECT = 3 / 4, 4 / 3
NUM_CROP_TRIES = 10

MIRRORED_WORDS = {"left": "right", "right": "left", "leftmost": "rightmost", "rightmost": "leftmost"}
MIRRORED_PATTERN = re.compile(rf"\b({'|'.join(MIRRORED_WORDS)})\b", re.IGNORECASE)


def sample_crop_box(
    width: int, height: int, rng: random.Random, *, min_scale: float = 0.2
) -> tuple[int, int, int, int]:
    """Random box `(left, top, right, bottom)` in pixels for a crop.

    Its area is uniform in `[min_scale, 1]` of the image and its aspect ratio log-uniform in `[3/4, 4/3]`. If ten tries
    fail, returns the largest centred box of an allowed aspect ratio.

    Example:
        >>> sample_crop_box(1000, 10, random.Random(0))
        (493, 0, 506, 10)
    """
    for _ in range(NUM_CROP_TRIES):
        area = width * height * rng.uniform(min_scale, 1.0)
        aspect = math.exp(rng.uniform(math.log(MIN_ASPECT), math.log(MAX_ASPECT)))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = rng.randint(0, width - crop_width), rng.randint(0, height - crop_height)
            return left, top, left + crop_width, top + crop_height
    crop_width = min(width, max(1, round(height * MAX_ASPECT)))
    crop_height = min(height, max(1, round(width / MIN_ASPECT)))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def mirror_caption(caption: str) -> str:
    """Caption of the mirrored image: swaps the words left and right, leftmost and rightmost, and keeps their case.

    Other senses of the words ("right now") are swapped too.

    Example:
        >>> mirror_caption("Left of the bright cup, a right-hand glove")
        'Right of the bright cup, a left-hand glove'
    """
    return MIRRORED_PATTERN.sub(_mirror_word, caption)


def _mirror_word(match: re.Match[str]) -> str:
    word = match.group()
    mirrored = MIRRORED_WORDS[word.lower()]
    if word.isupper():
        return mirrored.upper()
    return mirrored.capitalize() if word[0].isupper() else mirrored


class TrainTransform:
    """Random resized crop, horizontal flip and RandomAugment, as in BLIP's training.

    Args:
        size (`int`):
            Width and height of the result in pixels.
        min_scale (`float`, *optional*, defaults to 0.2):
            Minimum area of a crop, as a fraction in (0, 1] of the image. BLIP pre-trains with 0.2 and fine-tunes with
            0.5.
        flip (`str`, *optional*, defaults to `"caption_aware"`):
            How to flip an image, with probability 0.5. `"always"` mirrors it and keeps its caption, as BLIP does;
            `"caption_aware"` also swaps left and right in the caption; `"never"` does not flip.
        augment (`bool`, *optional*, defaults to `True`):
            Whether to apply [`~blip_hf.data.augment.RandomAugment`] with two operations at level 5.

    Example:
        >>> transform = TrainTransform(224)
        >>> image, caption = transform(Image.new("RGB", (640, 480)), "a dog on the left", random.Random(1))
        >>> image.size, caption
        ((224, 224), 'a dog on the right')
    """

    def __init__(
        self, size: int, *, min_scale: float = 0.2, flip: FlipMode = "caption_aware", augment: bool = True
    ) -> None:
        if size < 1:
            raise ValueError(f"size={size} is too small; pass the model's image size in pixels, 1 or more.")
        if not 0 < min_scale <= 1:
            raise ValueError(f"min_scale={min_scale} is not a fraction of the image's area; pass a value in (0, 1].")
        if flip not in get_args(FlipMode):
            raise ValueError(f"flip={flip!r} is unknown; pass one of {', '.join(map(repr, get_args(FlipMode)))}.")
        self.size = size
        self.min_scale = min_scale
        self.flip = flip
        self.augment = RandomAugment() if augment else None

    def __call__(self, image: Image.Image, caption: str, rng: random.Random) -> tuple[Image.Image, str]:
        """Transforms an RGB image of any size and its caption; raises a ValueError for other modes."""
        if image.mode != "RGB":
            raise ValueError(f"The image has mode {image.mode}, expected RGB; open it with `open_image`.")
        box = sample_crop_box(*image.size, rng, min_scale=self.min_scale)
        image = image.resize((self.size, self.size), Resampling.BICUBIC, box=box)
        # Sampled for each `flip`, so that its value does not change the crops and operations.
        is_flipped = rng.random() < 0.5
        if is_flipped and self.flip != "never":
            image = ImageOps.mirror(image)
            caption = mirror_caption(caption) if self.flip == "caption_aware" else caption
        if self.augment is not None:
            image = self.augment(image, rng)
        return image, caption


__all__ = ["FlipMode", "TrainTransform", "mirror_caption", "sample_crop_box"]
