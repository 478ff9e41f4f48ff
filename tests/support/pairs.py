# SPDX-License-Identifier: BSD-3-Clause
"""Three plain images, red, lime and blue, as files and in a dataset."""

from pathlib import Path

import datasets
from datasets import Dataset

from tests.support.images import encoded_image, write_images


COLORS = ["red", "lime", "blue"]


def draw_photos(folder: Path) -> Path:
    """Writes red.png, lime.png and blue.png to `images/` in a folder, and returns the folder."""
    write_images(folder / "images", *COLORS, size=(4, 3))
    return folder


def embedded_pairs(captions: list) -> Dataset:
    """Returns pairs with images as bytes and a file name without a folder, as on the Hub."""
    images = [{"bytes": encoded_image(color), "path": "image.png"} for color in COLORS]
    return Dataset.from_dict({"image": images, "caption": captions}).cast_column("image", datasets.Image())
