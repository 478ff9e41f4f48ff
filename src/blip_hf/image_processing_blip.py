# SPDX-License-Identifier: BSD-3-Clause
"""Converts images to `pixel_values`, with Pillow."""

import math
from typing import Any

import numpy as np
from PIL import Image
from transformers import BlipImageProcessorPil as UpstreamBlipImageProcessorPil
from transformers.image_utils import ChannelDimension, SizeDict, is_valid_image
from transformers.processing_utils import ImagesKwargs

from .image_arrays import is_array, scale_to_255, to_channels_last, to_eight_bits
from .image_utils import decode_base64, image_errors, open_image, view_image


class BlipImageProcessorKwargs(ImagesKwargs, total=False):
    """Options of [`BlipImageProcessor`] in addition to those of transformers."""

    reducing_gap: float | None


class BlipImageProcessor(UpstreamBlipImageProcessorPil):
    """Resizes images to a square (bicubic, aspect ratio ignored), rescales to [0, 1] and normalises as CLIP does.

    Options are those of `transformers.BlipImageProcessorPil`, and so are the values for upright 8-bit RGB images. Other
    images are first converted as by [`~blip_hf.image_utils.open_image`], so that 16-bit, transparent and EXIF-rotated ones
    come out as a viewer shows them. In addition to what transformers takes, an image may be a `Path`, bytes, a binary file
    object, a grey array or tensor `(h, w)`, or an undecoded image of `datasets`. torchvision is never needed.

    Arrays and tensors of floats from 0 to 1 give the values of the same image in 8 bits, with the default
    `do_rescale=True`: [`~blip_hf.image_arrays.white_level`] finds their range. `do_rescale=False` and another
    `rescale_factor` leave the levels of arrays and tensors as they are.

    Args:
        reducing_gap (`float`, *optional*):
            Pillow's `reducing_gap`: an image of more than twice the target size is first reduced by an integer factor, to
            at least `reducing_gap` times that size, and JPEG files are decoded at reduced size. 2.0 is several times as
            fast on large photos and changes the levels of a photo by 1 of 255 on average. By default all pixels are used,
            as in transformers.
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
        """Opens paths, URLs, bytes, file objects and dicts, in nested lists; images are returned unchanged."""
        size: Any = self.size  # a `SizeDict`, unlike its annotation
        return self._fetch(image_url_or_urls, _min_size(self.do_resize, size, self.reducing_gap))

    def _fetch(self, source: Any, min_size: int | None) -> Any:
        if isinstance(source, (list, tuple)):
            return [self._fetch(item, min_size) for item in source]
        if isinstance(source, str):
            if source.startswith(("http://", "https://")):
                return super().fetch_images(source)
            source = decode_base64(source) or source
        if is_array(source) and source.ndim not in (3, 4):  # transformers expects an axis for channels
            with image_errors(source):
                return np.repeat(to_channels_last(source), 3, axis=-1)
        return source if is_valid_image(source) else open_image(source, min_size=min_size)

    def _prepare_image_like_inputs(self, images: Any, *args: Any, **kwargs: Any) -> list[np.ndarray]:
        # The options of the call are known here, but not where transformers calls `fetch_images`.
        min_size = _min_size(kwargs["do_resize"], kwargs["size"], kwargs["reducing_gap"])
        return super()._prepare_image_like_inputs(self._fetch(images, min_size), *args, **kwargs)

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Converts one image to an array of shape `(3, h, w)`. A PIL image that is to be resized is resized here."""
        if is_array(image):
            with image_errors(image):
                image = _read_array(image, do_convert_rgb, input_data_format, **kwargs)
            input_data_format = ChannelDimension.LAST
        if do_convert_rgb and isinstance(image, Image.Image):
            image = view_image(image)
            size = kwargs.get("size")
            if kwargs.get("do_resize") and size is not None and size.height and size.width:
                # Resized before it becomes an array: arrays of large images are slow to make.
                image = image.resize(
                    (size.width, size.height), kwargs.get("resample"), reducing_gap=kwargs.get("reducing_gap")
                )
        return super().process_image(image, do_convert_rgb, input_data_format, **kwargs)


def _read_array(
    image: Any,
    do_convert_rgb: bool | None,
    input_data_format: str | ChannelDimension | None,
    do_rescale: bool | None = None,
    rescale_factor: float | None = None,
    do_resize: bool | None = None,
    **_: Any,
) -> np.ndarray | Image.Image:
    """The levels of an array or tensor as `(h, w, c)`, from 0 to 255 if they are to be rescaled from there, or an image."""
    levels = to_channels_last(image, input_data_format)
    if not do_rescale or rescale_factor != BlipImageProcessorPil.rescale_factor:
        return levels
    # Pillow resizes and blends in 8 bits.
    if not do_resize and levels.shape[-1] != 4:
        return scale_to_255(levels)
    levels = to_eight_bits(levels)
    return Image.fromarray(np.ascontiguousarray(levels)) if do_convert_rgb and levels.shape[-1] > 1 else levels


def _min_size(do_resize: bool | None, size: SizeDict, reducing_gap: float | None) -> int | None:
    """Smallest height and width that an image may be decoded at, or `None` for full size."""
    if reducing_gap is None or not do_resize or not (size.height and size.width):
        return None
    return math.ceil(reducing_gap * max(size.height, size.width))


# Names of transformers, which has one class for each backend. This package has one class, with Pillow.
BlipImageProcessorPil = BlipImageProcessor
BlipImageProcessorFast = BlipImageProcessor


__all__ = ["BlipImageProcessor", "BlipImageProcessorFast", "BlipImageProcessorKwargs", "BlipImageProcessorPil"]
