# SPDX-License-Identifier: BSD-3-Clause
"""One way to read an image, whatever holds it: upright, in RGB, with 8 bits a channel."""

import errno
import os
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps


ImageSource = str | Path | bytes | BinaryIO | Image.Image | np.ndarray | dict[str, Any]

_ACCEPTED = (
    "a path, bytes, a binary file object, a PIL image, a uint8 array of shape (h, w), (h, w, 3) or (h, w, 4),"
    ' or a dict with "bytes" or "path"'
)


# Longer names are cut in errors: they may be images in base64, which are to come as `data:` URLs or bytes.
_LONGEST_NAME = 300


# What says that a disk or a connection fails, or that the process has too much open: the file may well be sound.
_FAULTS_OF_MACHINE = frozenset(
    {
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.EAGAIN,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ENOTCONN,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
    }
)


class UnreadableImageError(ValueError):
    """An image that cannot be used: missing, broken, too large, or not an image. The message names it."""


def open_image(source: ImageSource, *, name: str | None = None, min_size: int | None = None) -> Image.Image:
    """Reads an image fully into memory, turned upright and converted to 8-bit RGB.

    - The EXIF orientation is applied, and an EXIF block that cannot be parsed is ignored.
    - Transparency, by channel, palette or key colour, is laid over white.
    - 16-bit grey levels (`I;16` and its kin) are scaled by 255 / 65535 rather than clipped. Levels of mode `I` are
      taken as 8-bit if none exceeds 255, otherwise as 16-bit. Levels of mode `F` are taken as 0 to 1 if none exceeds 1,
      otherwise as 0 to 255. Other ranges are refused.
    - Of an animation, the frame at hand (the first of a file) is taken.

    Args:
        source (`str`, `Path`, `bytes`, binary file object, `PIL.Image.Image`, `np.ndarray` or `dict`):
            The image. Arrays are uint8 of shape `(h, w)`, `(h, w, 3)` or `(h, w, 4)`; dicts have the keys `bytes` and
            `path` of undecoded images in `datasets`, `bytes` winning. A PIL image is not changed.
        name (`str`, *optional*):
            What errors call the image. Defaults to its path, where it has one.
        min_size (`int`, *optional*):
            Lets a JPEG that is not decoded yet be decoded at a half, quarter or eighth, which is faster, as long as both
            sides keep as many pixels. Without it, images have the size they are stored in.

    Returns:
        `PIL.Image.Image`: in mode `RGB`, with no open file behind it.

    Raises:
        UnreadableImageError: If the image cannot be read.
        OSError: If the machine is at fault, as a disk that fails, so that another attempt may do better.

    Example:
        >>> open_image(np.zeros((2, 3), dtype=np.uint8)).size
        (3, 2)
    """
    image = view_image(source, name=name, min_size=min_size)
    return image.copy() if image is source else image


def view_image(source: ImageSource, *, name: str | None = None, min_size: int | None = None) -> Image.Image:
    """As `open_image`, but gives a PIL image itself, not a copy, where it is upright 8-bit RGB already.

    Args:
        source (`str`, `Path`, `bytes`, binary file object, `PIL.Image.Image`, `np.ndarray` or `dict`):
            The image.
        name (`str`, *optional*):
            What errors call the image.
        min_size (`int`, *optional*):
            As in `open_image`.

    Returns:
        `PIL.Image.Image`: to be read and not changed.

    Raises:
        UnreadableImageError, OSError: As `open_image`.
    """
    source, default_name = _unwrap(source)
    name = name or default_name
    try:
        if isinstance(source, Image.Image):
            source.load()
            return _to_rgb(_upright(source))
        with _open(source) as image:
            if min_size is not None:
                image.draft(None, (min_size, min_size))
            image.load()
            return _to_rgb(_upright(image))
    except Exception as error:
        # Decoders raise whatever they stumble over in a broken file: OSError, SyntaxError, struct.error and more.
        if is_fault_of_machine(error):
            raise
        raise UnreadableImageError(
            f"Cannot read the image {name}: {_reason(error)}. Accepted is {_ACCEPTED}, in a format that Pillow reads;"
            " replace or leave out this image."
        ) from error


def is_fault_of_machine(error: Exception) -> bool:
    """Whether an error in reading says something of the machine rather than of the file.

    Args:
        error (`Exception`):
            What was raised.

    Returns:
        `bool`: whether another attempt may do better.

    Example:
        >>> is_fault_of_machine(OSError(errno.EIO, "Input/output error")), is_fault_of_machine(FileNotFoundError())
        (True, False)
    """
    return isinstance(error, OSError) and error.errno in _FAULTS_OF_MACHINE


def _unwrap(source: ImageSource) -> tuple[Any, str]:
    """The source without its dict, and what to call it."""
    if isinstance(source, dict):
        content, path = source.get("bytes"), source.get("path")
        return (path if content is None else content), (str(path) if path else "in a dict without path")
    if isinstance(source, ImageFile.ImageFile):
        return source, str(source.filename or f"of class {type(source).__name__}")
    if isinstance(source, (str, os.PathLike)):
        path = str(source)
        return source, path if len(path) <= _LONGEST_NAME else f"{path[:_LONGEST_NAME]}... ({len(path)} characters)"
    return source, f"of type {type(source).__name__}"


def _open(source: Any) -> Image.Image:
    if isinstance(source, np.ndarray):
        is_grey_or_colour = source.ndim == 2 or (source.ndim == 3 and source.shape[-1] in (3, 4))
        if source.dtype != np.uint8 or not is_grey_or_colour or source.size == 0:
            raise ValueError(f"an array of shape {source.shape} and type {source.dtype}")
        return Image.fromarray(source)
    if isinstance(source, bytes):
        return Image.open(BytesIO(source))
    if source is None or isinstance(source, (list, tuple, int, float)):
        raise ValueError(f"got {type(source).__name__}")
    return Image.open(source)


def _upright(image: Image.Image) -> Image.Image:
    try:
        is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if is_turned else image
    except Exception:
        # Broken metadata is common on the web and says nothing about the pixels.
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_eight_bits(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    levels = np.asarray(image)
    low, high = levels.min(), levels.max()
    white_levels = {"F": (1, 255), "I": (255, 65535)}.get(image.mode, (65535,))
    white = next((level for level in white_levels if high <= level), white_levels[-1])
    # Written so that NaN is refused too.
    if not (low >= 0 and high <= white):
        raise ValueError(f"levels of mode {image.mode} from {low} to {high} do not fit 0 to {white}")
    return Image.fromarray(np.rint(levels * (255 / white)).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is empty or not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # without the name, which the message has
    return str(error).rstrip(".") or type(error).__name__


__all__ = ["ImageSource", "UnreadableImageError", "is_fault_of_machine", "open_image", "view_image"]
