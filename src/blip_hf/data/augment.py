# SPDX-License-Identifier: BSD-3-Clause
"""RandomAugment, BLIP's augmentation of training images, with Pillow.

Each operation is a pure function of an RGB image and a strength. Warps fill uncovered areas with mid-grey.
"""

import random
from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps
from PIL.Image import Resampling, Transform


MAX_LEVEL = 10
FILL_COLOR = (128, 128, 128)


def adjust_brightness(image: Image.Image, factor: float) -> Image.Image:
    """Blends with black: 0 is black, 1 the image itself, 2 twice as bright."""
    return ImageEnhance.Brightness(image).enhance(factor)


def adjust_sharpness(image: Image.Image, factor: float) -> Image.Image:
    """Blends with a smoothed copy: 0 is smoothed, 1 the image itself, 2 sharpened."""
    return ImageEnhance.Sharpness(image).enhance(factor)


def shear_x(image: Image.Image, slope: float) -> Image.Image:
    """Shears to the right, by `slope` pixels per row below the top edge."""
    return _warp(image, (1.0, -slope, 0.0, 0.0, 1.0, 0.0))


def shear_y(image: Image.Image, slope: float) -> Image.Image:
    """Shears down, by `slope` pixels per column right of the left edge."""
    return _warp(image, (1.0, 0.0, 0.0, -slope, 1.0, 0.0))


def translate_x(image: Image.Image, pixels: float) -> Image.Image:
    """Moves the image to the right."""
    return _warp(image, (1.0, 0.0, -pixels, 0.0, 1.0, 0.0))


def translate_y(image: Image.Image, pixels: float) -> Image.Image:
    """Moves the image down."""
    return _warp(image, (1.0, 0.0, 0.0, 0.0, 1.0, -pixels))


def rotate(image: Image.Image, degrees: float) -> Image.Image:
    """Rotates the image counter-clockwise about its centre and keeps its size."""
    return image.rotate(degrees, Resampling.BILINEAR, fillcolor=FILL_COLOR)


def _warp(image: Image.Image, output_to_input: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Transform.AFFINE, output_to_input, Resampling.BILINEAR, fillcolor=FILL_COLOR)


FIXED_OPERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "identity": Image.Image.copy,
    "auto_contrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
}
ENHANCEMENTS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "brightness": adjust_brightness,
    "sharpness": adjust_sharpness,
}
# Each warp with its strength at the highest level: a slope, pixels, or degrees.
WARPS: dict[str, tuple[Callable[[Image.Image, float], Image.Image], float]] = {
    "shear_x": (shear_x, 0.3),
    "shear_y": (shear_y, 0.3),
    "translate_x": (translate_x, 10.0),
    "translate_y": (translate_y, 10.0),
    "rotate": (rotate, 30.0),
}


class RandomAugment:
    """Samples operations with replacement and applies each with probability 0.5.

    The operations are identity, auto-contrast, equalize, brightness, sharpness, shear, translation and rotation. At
    level `m` of 10, shear is `0.03 * m`, translation `m` pixels and rotation `3 * m` degrees, each with a random sign;
    brightness and sharpness are scaled by `0.1 + 0.18 * m` (BLIP's level 5 keeps them). As in
    [BLIP](https://huggingface.co/papers/2201.12086), there are no colour operations, because captions name colours.

    Example:
        >>> augment = RandomAugment()
        >>> augment(Image.new("RGB", (32, 24)), random.Random(0)).size
        (32, 24)
    """

    def __init__(self, num_operations: int = 2, level: int = 5) -> None:
        if num_operations < 0:
            raise ValueError(f"num_operations={num_operations} is negative; pass 0 or more.")
        if not 0 <= level <= MAX_LEVEL:
            raise ValueError(f"level={level} is out of range; pass a value from 0 to {MAX_LEVEL}.")
        self.num_operations = num_operations
        self.level = level

    def __call__(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """Augmented copy of an RGB image, of the same size."""
        for name in rng.choices([*FIXED_OPERATIONS, *ENHANCEMENTS, *WARPS], k=self.num_operations):
            if rng.random() < 0.5:
                image = self._apply(name, image, rng)
        return image

    def _apply(self, name: str, image: Image.Image, rng: random.Random) -> Image.Image:
        if name in FIXED_OPERATIONS:
            return FIXED_OPERATIONS[name](image)
        if name in ENHANCEMENTS:
            return ENHANCEMENTS[name](image, 0.1 + 1.8 * self.level / MAX_LEVEL)
        warp, largest = WARPS[name]
        return warp(image, rng.choice((-1, 1)) * largest * self.level / MAX_LEVEL)


__all__ = ["RandomAugment"]
