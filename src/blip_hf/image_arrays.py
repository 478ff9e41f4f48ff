# SPDX-License-Identifier: BSD-3-Clause
"""Arrays and tensors as images: the position of their channels, and the range of their levels."""

import sys
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
from PIL import Image


if TYPE_CHECKING:
    from torch import Tensor

_NUM_CHANNELS = (1, 3, 4)
# Resampling an image overshoots black and white. Levels outside by at most this part of the range are clipped.
_OVERSHOOT = 0.25


def is_array(source: object) -> TypeGuard["np.ndarray | Tensor"]:
    """Whether this is a NumPy array or a tensor of torch."""
    return isinstance(source, np.ndarray) or _is_tensor(source)


def white_level(levels: np.ndarray) -> int:
    """The level of white, from the data type and the highest level. Black is 0.

    | data type | white |
    |---|---|
    | `bool` | 1 |
    | `uint8` | 255 |
    | `uint16` | 65535 |
    | other integers | 255, or 65535 if a level exceeds 255 |
    | floats | 1, or 255 if a level exceeds 1 by more than resampling does |

    Raises:
        ValueError: If the levels do not fit this range. Normalized pixel values do not.
    """
    if levels.dtype.kind == "b":
        return 1
    low, high = levels.min(), levels.max()
    is_float = levels.dtype.kind == "f"
    overshoot = _OVERSHOOT if is_float else 0.0
    if is_float:
        white = 1 if high <= 1 + overshoot else 255
    elif levels.dtype.kind == "u" and levels.dtype.itemsize <= 2:
        white = 2 ** (8 * levels.dtype.itemsize) - 1
    else:
        white = 255 if high <= 255 else 65535
    # NaN fails this comparison too.
    if not (low >= -overshoot * max(high, 0) and high <= white * (1 + overshoot)):
        ranges = "0 to 1 or 0 to 255" if is_float else f"0 to {white}"
        raise ValueError(f"levels from {low} to {high} of type {levels.dtype}, expected {ranges}")
    return white


def scale_to_255(levels: np.ndarray) -> np.ndarray:
    """Scales levels to the range 0 to 255, without rounding."""
    white = white_level(levels)
    return levels if white == 255 else levels * np.float32(255 / white)


def to_eight_bits(levels: np.ndarray) -> np.ndarray:
    """Scales levels to the range 0 to 255 and rounds them to `uint8`."""
    return levels if levels.dtype == np.uint8 else np.rint(scale_to_255(levels)).clip(0, 255).astype(np.uint8)


def to_channels_last(image: "np.ndarray | Tensor", input_data_format: str | None = None) -> np.ndarray:
    """Returns the levels of one image of shape `(h, w)`, `(h, w, c)` or `(c, h, w)` as `(h, w, c)`, `c` being 1, 3 or 4.

    If both ends of a shape may be channels, three of them are more likely than one or four. If that does not decide,
    arrays have them last and tensors first, as is usual.
    """
    levels = _to_numpy(image)
    if levels.dtype.kind not in "biuf" or levels.size == 0:
        raise _no_image(levels)
    if levels.ndim == 2:
        return levels[..., None]
    if input_data_format is None:
        input_data_format = _find_channels(levels, is_first_preferred=_is_tensor(image))
    return np.moveaxis(levels, 0, -1) if input_data_format == "channels_first" else levels


def array_to_image(image: "np.ndarray | Tensor") -> Image.Image:
    """Converts one image to an 8-bit image of mode `L`, `RGB` or `RGBA`."""
    levels = to_eight_bits(to_channels_last(image))
    return Image.fromarray(np.ascontiguousarray(levels[..., 0] if levels.shape[-1] == 1 else levels))


def _find_channels(levels: np.ndarray, *, is_first_preferred: bool) -> str:
    ends = (levels.shape[0], levels.shape[-1])
    for accepted in ((3,), _NUM_CHANNELS):
        is_first, is_last = (levels.ndim == 3 and size in accepted for size in ends)
        if is_first or is_last:
            is_first = is_first and (is_first_preferred or not is_last)
            return "channels_first" if is_first else "channels_last"
    raise _no_image(levels)


def _to_numpy(image: "np.ndarray | Tensor") -> np.ndarray:
    if isinstance(image, np.ndarray):
        return image
    image = image.detach().cpu()
    return (image.float() if image.is_floating_point() else image).numpy()  # NumPy has no bfloat16


def _is_tensor(source: object) -> bool:
    # There are no tensors before torch is imported, which takes seconds.
    return "torch" in sys.modules and isinstance(source, sys.modules["torch"].Tensor)


def _no_image(levels: np.ndarray) -> ValueError:
    return ValueError(f"an array of shape {levels.shape} and type {levels.dtype}")


__all__ = ["array_to_image", "is_array", "scale_to_255", "to_channels_last", "to_eight_bits", "white_level"]
