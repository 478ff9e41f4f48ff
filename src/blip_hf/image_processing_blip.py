# SPDX-License-Identifier: BSD-3-Clause
"""Images to `pixel_values`, with Pillow."""

import math
from typing import Any

import numpy as np
from PIL import Image
from transformers import BlipImageProcessorPil
from transformers.image_utils import SizeDict, is_valid_image
from transformers.processing_utils import ImagesKwargs

from .image_utils import open_image, view_image


class BlipImageProcessorKwargs(ImagesKwargs, total=False):
    """Options of [`BlipImageProcessor`] beside those of transformers."""

    reducing_gap: float | None


class BlipImageProcessor(BlipImageProcessorPil):
    """Resizes images to a square (bicubic, aspect ratio ignored), rescales to [0, 1] and normalises with CLIP's moments.

    Options and, for upright 8-bit RGB images, values are those of `transformers.BlipImageProcessorPil`. Other images
    go through [`~blip_hf.image_utils.open_image`] first, so that 16-bit, transparent and EXIF-rotated ones come out as
    they are seen. Beside what transformers takes, an image may be a `Path`, bytes, a binary file object, a grey uint8
    array `(h, w)`, or an undecoded image of `datasets`. Never needs torchvision.

    Args:
        reducing_gap (`float`, *optional*):
            Pillow's name for shrinking in two steps: a picture of more than twice the wanted size is first reduced by a
            whole factor, to no less than `reducing_gap` times that size, and JPEG files are decoded reduced. 2.0 is
            several times as fast on large photos, and a photo's levels differ by one in 255 in the mean. Without it, all
            pixels count, as in transformers.
        **kwargs:
            Options of `transformers.BlipImageProcessorPil`.

    Raises:
        UnreadableImageError: If an image cannot be read; the message names it.

    Example:
        >>> BlipImageProcessor(size=32)(Image.new("L", (60, 40)), return_tensors="pt").pixel_values.shape
        torch.Size([1, 3, 32, 32])
    """

    valid_kwargs = BlipImageProcessorKwargs
    reducing_gap = None

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Opens what is not an image yet: paths, URLs, bytes, file objects and dicts, in lists of any depth.

        Args:
            image_url_or_urls (`Any`):
                An image in any accepted form, or a list of them.

        Returns:
            The same structure with PIL images, arrays and tensors in it.
        """
        return self._fetch(image_url_or_urls, _min_size(self.do_resize, self.size, self.reducing_gap))

    def _fetch(self, source: Any, min_size: int | None) -> Any:
        if isinstance(source, (list, tuple)):
            return [self._fetch(item, min_size) for item in source]
        if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
            return super().fetch_images(source)
        is_grey_array = isinstance(source, np.ndarray) and source.ndim == 2
        return source if is_valid_image(source) and not is_grey_array else open_image(source, min_size=min_size)

    def _prepare_image_like_inputs(self, images: Any, *args: Any, **kwargs: Any) -> list[np.ndarray]:
        # Options of the call are known here, and no longer where upstream calls `fetch_images`.
        min_size = _min_size(kwargs["do_resize"], kwargs["size"], kwargs["reducing_gap"])
        return super()._prepare_image_like_inputs(self._fetch(images, min_size), *args, **kwargs)

    def process_image(self, image: Any, do_convert_rgb: bool | None = None, **kwargs: Any) -> np.ndarray:
        """Converts one image to an array of shape `(3, h, w)`.

        Args:
            image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
                The image.
            do_convert_rgb (`bool`, *optional*):
                Whether to convert to RGB; without it, a PIL image is taken as it lies in memory.
            **kwargs:
                Options of the method in transformers, and those of the call: a PIL image that is to be resized has its
                final size already, as arrays of large images are slow to make.

        Returns:
            `np.ndarray`: the image, channels first.
        """
        if do_convert_rgb and isinstance(image, Image.Image):
            image = view_image(image)
            size = kwargs.get("size")
            if kwargs.get("do_resize") and size is not None and size.height and size.width:
                image = image.resize(
                    (size.width, size.height), kwargs.get("resample"), reducing_gap=kwargs.get("reducing_gap")
                )
        return super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)


def _min_size(do_resize: bool | None, size: SizeDict, reducing_gap: float | None) -> int | None:
    """Fewest pixels a side that decoding must keep, or `None` where it must keep all."""
    if reducing_gap is None or not do_resize or not (size.height and size.width):
        return None
    return math.ceil(reducing_gap * max(size.height, size.width))


__all__ = ["BlipImageProcessor", "BlipImageProcessorKwargs"]
