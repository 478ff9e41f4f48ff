# SPDX-License-Identifier: BSD-3-Clause
"""Batches of images for a model, read and resized ahead in threads."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal, TypeVar

import torch
from PIL import Image
from torch import Tensor

from ..image_utils import ImageErrorKind, ImageSource, UnreadableImageError, open_image
from ..processing_blip import BlipProcessor
from .read_ahead import read_ahead


OnError = Literal["raise", "skip"]
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """What a model found for an image, or why the image could not be read."""

    image_index: int
    """Position of the image in the input, from 0."""
    error: str | None = None
    """Why the image could not be read."""
    error_kind: ImageErrorKind | None = None
    """The kind of this error, to count errors by."""


@dataclass(frozen=True)
class ImageBatch:
    """Images that were read, in order, and errors of those that were not.

    Args:
        indices (`list[int]`):
            Index of each image that was read.
        images (`list[Image.Image]`):
            The images.
        pixel_values (`torch.Tensor` of shape `(b, 3, size, size)`):
            Their pixels; without elements if no image was read.
        errors (`dict[int, UnreadableImageError]`):
            Error of each other image, by index.
    """

    indices: list[int]
    images: list[Image.Image]
    pixel_values: Tensor
    errors: dict[int, UnreadableImageError]

    def failures(self, result_class: Callable[..., Result]) -> dict[int, list[Result]]:
        """One result with its error for each image that was not read, by index."""
        return {
            index: [result_class(image_index=index, error=str(error), error_kind=error.kind)]
            for index, error in self.errors.items()
        }


def image_batches(
    processor: BlipProcessor,
    images: Iterable[ImageSource],
    *,
    batch_size: int,
    num_workers: int = 0,
    on_error: OnError = "raise",
    first_index: int = 0,
) -> Iterator[ImageBatch]:
    """Reads images in order with `num_workers` threads, which are at most two batches ahead.

    Raises:
        ValueError: If `on_error` is unknown.
        UnreadableImageError: If an image cannot be read and `on_error` is `"raise"`.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r} is unknown. Pass 'raise' or 'skip'.")
    read = partial(_read, processor, on_error=on_error)
    results = read_ahead(images, read, num_workers=num_workers, depth=2 * batch_size)
    numbered = enumerate(results, first_index)
    while batch := list(islice(numbered, batch_size)):
        readable = {index: item for index, item in batch if not isinstance(item, UnreadableImageError)}
        yield ImageBatch(
            indices=list(readable),
            images=[image for image, _ in readable.values()],
            pixel_values=torch.cat([pixels for _, pixels in readable.values()]) if readable else torch.empty(0),
            errors={index: item for index, item in batch if isinstance(item, UnreadableImageError)},
        )


def _read(
    processor: BlipProcessor, source: ImageSource, *, on_error: OnError
) -> tuple[Image.Image, Tensor] | UnreadableImageError:
    """An image and its pixels, `(1, 3, size, size)`."""
    try:
        image = open_image(source)
    except UnreadableImageError as error:
        if on_error == "raise":
            raise
        return error
    return image, processor(images=image, return_tensors="pt")["pixel_values"]


__all__ = ["ImageBatch", "ImageResult", "OnError", "image_batches"]
