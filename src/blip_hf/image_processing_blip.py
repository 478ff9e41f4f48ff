# SPDX-License-Identifier: BSD-3-Clause
"""Pictures to `pixel_values`, with Pillow."""

from typing import Any

import numpy as np
from PIL import Image
from transformers import BlipImageProcessorPil
from transformers.image_utils import is_valid_image

from .data.images import open_image


class BlipImageProcessor(BlipImageProcessorPil):
    """Resizes pictures to a square (bicubic, aspect ratio ignored), rescales to [0, 1] and normalises with CLIP's moments.

    Options and, for upright 8-bit RGB pictures, values are those of `transformers.BlipImageProcessorPil`. Other pictures
    go through [`~blip_hf.data.images.open_image`] first, so that 16-bit, transparent and EXIF-rotated ones come out as
    they are seen. Beside what transformers takes, a picture may be a `Path`, bytes, a binary file object, a grey uint8
    array `(h, w)`, or an undecoded picture of `datasets`. Never needs torchvision.

    Raises:
        UnreadableImageError: If a picture cannot be read; the message names it.

    Example:
        >>> BlipImageProcessor(size=32)(Image.new("L", (60, 40)), return_tensors="pt").pixel_values.shape
        torch.Size([1, 3, 32, 32])
    """

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Opens what is not a picture yet: paths, URLs, bytes, file objects and dicts, in lists of any depth.

        Args:
            image_url_or_urls (`Any`):
                A picture in any accepted form, or a list of them.

        Returns:
            The same structure with PIL images, arrays and tensors in it.
        """
        source = image_url_or_urls
        if isinstance(source, (list, tuple)):
            return [self.fetch_images(item) for item in source]
        if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
            return super().fetch_images(source)
        is_grey_array = isinstance(source, np.ndarray) and source.ndim == 2
        return source if is_valid_image(source) and not is_grey_array else open_image(source)

    def process_image(self, image: Any, do_convert_rgb: bool | None = None, **kwargs: Any) -> np.ndarray:
        """Converts one picture to an array of shape `(3, h, w)`.

        Args:
            image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
                The picture.
            do_convert_rgb (`bool`, *optional*):
                Whether to convert to RGB; without it, a PIL image is taken as it lies in memory.
            **kwargs:
                Options of the method in transformers.

        Returns:
            `np.ndarray`: the picture, channels first.
        """
        if do_convert_rgb and isinstance(image, Image.Image):
            image = open_image(image)
        return super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)


__all__ = ["BlipImageProcessor"]
