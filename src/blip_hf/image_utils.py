# SPDX-License-Identifier: BSD-3-Clause
"""Reads images: upright, as 8-bit RGB, from every source and format that Pillow supports."""

import base64
import errno
import io
import multiprocessing
import os
import re
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Union

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps
from transformers.utils import logging

from .image_arrays import array_to_image, is_array, to_eight_bits
from .image_files import image_formats


if TYPE_CHECKING:
    from torch import Tensor


logger = logging.get_logger(__name__)

# `Union` takes the name of a class, and torch is not imported here.
ImageSource = Union[str, Path, bytes, BinaryIO, Image.Image, np.ndarray, "Tensor", dict[str, Any]]

ImageErrorKind = Literal["missing", "not_an_image", "no_permission", "too_large", "broken"]

MAX_IMAGE_BYTES = 2**28
"""Maximum size in bytes of an encoded image."""
MAX_IMAGE_PIXELS = 2**26
"""Maximum number of pixels of an image: about 200 MB in RGB, below the limit of Pillow's own warning."""
MAX_IMAGE_SECONDS = 60
"""Maximum time to read an image in a worker process."""

_ACCEPTED_FILE = "a file in a format that Pillow reads"
_ACCEPTED = (
    "a path, bytes, a binary file object, a PIL image, an array or tensor of shape (h, w), (h, w, c) or (c, h, w) with 1, 3"
    " or 4 channels, or a dict with 'bytes' or 'path'"
)

# Longer than the name of a file.
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{256,}={0,2}\s*")

# Longer names are truncated in messages, for example images in base64.
_LONGEST_NAME = 300

# Errors of a disk, a connection or too many open files. The image itself may be valid.
_MACHINE_ERRORS = frozenset(
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
    """Raised for an image that cannot be used: missing, broken, too large, or not an image. The message names it."""

    kind: ImageErrorKind = "broken"
    """The kind of error, to count errors by."""


def open_image(source: ImageSource, *, name: str | None = None, min_size: int | None = None) -> Image.Image:
    """Reads an image into memory, applies its EXIF orientation and converts it to 8-bit RGB.

    - A broken EXIF block is ignored.
    - Transparent pixels (alpha channel, palette or key colour) are blended with white.
    - Levels of more than 8 bits, floats and booleans are scaled to 8 bits. [`~blip_hf.image_arrays.white_level`] finds
      their range: floats from 0 to 1 and from 0 to 255 are both read. Other ranges raise an error.
    - Of an animation, the current frame is read (the first one of a file).
    - Of a file or bytes, at most `MAX_IMAGE_BYTES` and `MAX_IMAGE_PIXELS` are accepted. A path must be that of a regular
      file, since a pipe or a device may never end.

    Args:
        source (`str`, `Path`, `bytes`, binary file object, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `dict`):
            The image. Arrays and tensors have the shape `(h, w)`, `(h, w, c)` or `(c, h, w)` with 1, 3 or 4 channels.
            Dicts have the keys `bytes` (read first) and `path`, as in `datasets`.
        name (`str`, *optional*):
            Name of the image in errors. Defaults to its path.
        min_size (`int`, *optional*):
            Minimum width and height of the result. A larger JPEG may then be decoded at a half, a quarter or an eighth
            of its size, which is faster.

    Raises:
        UnreadableImageError: If the image cannot be read.
        OSError: If a disk or connection fails, so a retry may succeed.

    Example:
        >>> open_image(np.zeros((2, 3), dtype=np.uint8)).size
        (3, 2)
    """
    image = view_image(source, name=name, min_size=min_size)
    return image.copy() if image is source else image


def view_image(source: ImageSource, *, name: str | None = None, min_size: int | None = None) -> Image.Image:
    """Like [`open_image`], but does not copy a PIL image that is already upright 8-bit RGB."""
    source, default_name = _unwrap(source)
    with image_errors(source, name or default_name), _time_limit():
        if isinstance(source, Image.Image):
            source.load()
            return _to_rgb(_upright(source))
        with _open(source) as image:
            _check_pixels(image)
            if min_size is not None:
                image.draft(None, (min_size, min_size))
            image.load()
            return _to_rgb(_upright(image))


@contextmanager
def _time_limit() -> Iterator[None]:
    """Raises `TimeoutError` after `MAX_IMAGE_SECONDS` in worker processes, such as those of a loader.

    A thread cannot be interrupted, and the main process may use the alarm itself; there, only sizes are bounded.
    """
    is_worker = multiprocessing.parent_process() is not None and threading.current_thread() is threading.main_thread()
    if not is_worker or sys.platform == "win32":
        yield
        return
    previous = signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, MAX_IMAGE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _stop(*_: Any) -> None:
    raise TimeoutError(f"reading it takes more than {MAX_IMAGE_SECONDS} seconds")


@contextmanager
def image_errors(source: Any, name: str | None = None) -> Iterator[None]:
    """Raises [`UnreadableImageError`] for errors of reading `source`, other than those of the machine."""
    try:
        yield
    except Exception as error:
        # Decoders raise many exceptions for a broken file: OSError, SyntaxError, struct.error and more.
        if isinstance(error, OSError) and is_machine_error(error):
            error.filename = error.filename or name
            raise
        is_file = isinstance(source, (str, bytes, os.PathLike, io.IOBase, ImageFile.ImageFile))
        unreadable = UnreadableImageError(
            f"Cannot read the image {name or _unwrap(source)[1]}: {_reason(error)}. Accepted is"
            f" {_ACCEPTED_FILE if is_file else _ACCEPTED}; replace or remove this image."
        )
        unreadable.kind = _error_kind(error)
        raise unreadable from error


def find_image_error(source: str | bytes) -> tuple[Literal["unreadable_image", "huge_image"], str] | None:
    """Reads only the header of an image (path or encoded bytes) and returns the reason and details if it is unusable."""
    try:
        with _open(source) as header:
            _check_pixels(header)
    except Exception as error:
        if is_machine_error(error):
            raise
        is_huge = _error_kind(error) == "too_large"
        return "huge_image" if is_huge else "unreadable_image", f"{type(error).__name__}: {error}"
    return None


def decode_base64(source: str) -> bytes | None:
    """Decodes an image in a `data:` URL or in base64; returns `None` for other text, such as a path.

    Example:
        >>> decode_base64("data:image/gif;base64,R0lG"), decode_base64("dog.gif")
        (b'GIF', None)
    """
    if not source.startswith("data:") and (not _BASE64.fullmatch(source) or os.path.exists(source)):
        return None
    with image_errors(source):
        return base64.b64decode(source.rpartition(",")[2])


def is_machine_error(error: Exception) -> bool:
    """Whether a read failed because of the machine (disk, connection), so that a retry may succeed.

    Example:
        >>> is_machine_error(OSError(errno.EIO, "Input/output error")), is_machine_error(FileNotFoundError())
        (True, False)
    """
    return isinstance(error, OSError) and error.errno in _MACHINE_ERRORS


# Decoding


def _unwrap(source: ImageSource) -> tuple[Any, str]:
    """The source without its dict, and its name for messages."""
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
    if is_array(source):
        return array_to_image(source)
    if source is None or isinstance(source, (list, tuple, int, float)):
        raise ValueError(f"got {type(source).__name__}")
    if isinstance(source, (str, os.PathLike)):
        _check_file(source)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        _check_bytes(len(source))
        source = io.BytesIO(source)
    return Image.open(source, formats=image_formats())


def _check_file(path: str | os.PathLike[str]) -> None:
    """Raises for a file that is too large, or that may never end."""
    state = os.stat(path)
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(state.st_mode):
        raise ValueError("it is a pipe, socket or device, and a regular file is expected")
    _check_bytes(state.st_size)


def _check_bytes(number: int) -> None:
    if number > MAX_IMAGE_BYTES:
        raise Image.DecompressionBombError(f"it has {number} bytes, at most {MAX_IMAGE_BYTES} are accepted")


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(
            f"it has {image.width} x {image.height} pixels, at most {MAX_IMAGE_PIXELS} in all are accepted"
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if is_turned else image
    except Exception:
        # Broken metadata is common on the web and does not affect the pixels.
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"it has no pixels ({image.width} x {image.height})")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(to_eight_bits(np.asarray(image)))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _error_kind(error: Exception) -> ImageErrorKind:
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, PermissionError):
        return "no_permission"
    if isinstance(error, (Image.UnidentifiedImageError, IsADirectoryError)):
        return "not_an_image"
    is_bomb = isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning))
    return "too_large" if is_bomb else "broken"


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is empty or not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # without the file name, which the message has already
    return str(error).rstrip(".") or type(error).__name__


__all__ = [
    "MAX_IMAGE_BYTES",
    "MAX_IMAGE_PIXELS",
    "ImageErrorKind",
    "ImageSource",
    "UnreadableImageError",
    "decode_base64",
    "find_image_error",
    "image_errors",
    "is_machine_error",
    "open_image",
    "view_image",
]
