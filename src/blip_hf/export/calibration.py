# SPDX-License-Identifier: BSD-3-Clause
"""Images whose activations set the ranges of int8."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils import logging

from ..data.image_batches import image_batches
from ..data.scenes import Scenes
from ..image_files import list_images
from ..image_utils import ImageSource
from ..processing_blip import BlipProcessor


logger = logging.get_logger(__name__)

NUM_IMAGES = 300
"""Number of calibration images."""


def calibration_pixels(processor: BlipProcessor, folder: Path | None, num_images: int = NUM_IMAGES) -> list[Tensor]:
    """Pixels `(1, 3, size, size)` of evenly spaced images of a folder, else of drawn scenes with a warning.

    Raises:
        ValueError: If the folder has no readable images.
    """
    if folder is None:
        logger.warning(
            "Int8 ranges come from drawn scenes, whose colours are not those of photos. Pass --calibration with a folder of a"
            " few hundred images like those that the model will read."
        )
        return list(_pixels(processor, [scene["image"] for scene in Scenes(num_images)]))
    paths = list_images(folder, recursive=True)
    pixels = list(_pixels(processor, paths[:: max(1, len(paths) // num_images)][:num_images]))
    if not pixels:
        raise ValueError(f"{folder} has no readable images. Pass a folder of a few hundred images.")
    return pixels


def _pixels(processor: BlipProcessor, images: Sequence[ImageSource]) -> Iterator[Tensor]:
    for batch in image_batches(processor, images, batch_size=8, on_error="skip"):
        if batch.pixel_values is not None:
            yield from batch.pixel_values.to(torch.float32).split(1)


__all__ = ["NUM_IMAGES", "calibration_pixels"]
