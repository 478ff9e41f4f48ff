# SPDX-License-Identifier: BSD-3-Clause
"""Finds images and reads them: upright, as 8-bit RGB, from every source and format that Pillow supports."""

import base64
import errno
import io
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Union

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps
from transformers.utils import logging

from .image_arrays import array_to_image, is_array, to_eight_bits


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

_ACCEPTED_FILE = "a file in a format that Pillow reads"
_ACCEPTED = (
    "a path, bytes, a binary file object, a PIL image, an array or tensor of shape (h, w), (h, w, c) or (c, h, w) with 1, 3"
    " or 4 channels, or a dict with 'bytes' or 'path'"
)

# Longer than the name of a file.
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{256,}={0,2}\s*")

# Longer names are truncated in messages, for example images in base64.
_LONGEST_NAME = 300

# Pillow names these formats but has no decoder for them, or runs Ghostscript to decode them (EPS).
_UNUSED_FORMATS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})

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
    with image_errors(source, name or default_name):
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
def image_errors(source: Any, name: str | None = None) -> Iterator[None]:
    """Raises [`UnreadableImageError`] for errors of reading `source`, other than those of the machine."""
    try:
        yield
    except Exception as error:
        # Decoders raise many exceptions for a broken file: OSError, SyntaxError, struct.error and more.
        if is_machine_error(error):
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


# Formats and files


@cache
def register_plugins() -> None:
    """Registers the installed Pillow plug-ins for AVIF, HEIC and JPEG XL."""
    Image.init()
    with suppress(ImportError):
        import pillow_avif  # noqa: F401
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401


@cache
def _used_formats() -> list[str]:
    """Formats that are decoded, also for files with the suffix of another one."""
    register_plugins()
    return [name for name in Image.OPEN if name not in _UNUSED_FORMATS]


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of the image files that Pillow and its installed plug-ins decode, in lower case with the dot."""
    formats = _used_formats()
    return frozenset(suffix.lower() for suffix, name in Image.registered_extensions().items() if name in formats)


def list_images(folder: str | os.PathLike[str], *, recursive: bool = False, follow_links: bool = False) -> list[Path]:
    """Lists the images of a folder by suffix, sorted by path, without hidden files. Warns about other files.

    With `recursive`, also those of subfolders, and with `follow_links` those of linked folders, each folder once.
    """
    images, others = [], Counter()
    for path in visible_files(Path(folder), recursive=recursive, follow_links=follow_links):
        suffix = path.suffix.lower()
        if suffix in image_suffixes():
            images.append(path)
        elif suffix not in (".txt", ".json", ".caption"):
            others[suffix] += 1
    warn_of_other_files(folder, others)
    return sorted(images)


def visible_files(folder: Path, *, recursive: bool, follow_links: bool = False) -> Iterator[Path]:
    """Files of a folder, without hidden ones and those that macOS adds to archives."""
    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, followlinks=follow_links):
        folders[:] = sorted(filter(is_visible, folders)) if recursive else []
        if follow_links:  # a link may lead back to a folder above it
            folders[:] = [name for name in folders if _is_first_visit(Path(parent, name), seen)]
        yield from (Path(parent, name) for name in names if is_visible(name))


def _is_first_visit(folder: Path, seen: set[str]) -> bool:
    real = os.path.realpath(folder)
    is_first = real not in seen
    seen.add(real)
    return is_first


def is_visible(name: str) -> bool:
    """Whether a file or folder of this name is neither hidden nor added by macOS."""
    return name in (".", "..") or (not name.startswith(".") and name != "__MACOSX")


_reported_suffixes: set[str] = set()


def warn_of_other_files(where: str | os.PathLike[str], counts: Mapping[str, int]) -> None:
    """Warns about skipped files, once for each suffix."""
    new = {suffix: count for suffix, count in counts.items() if suffix not in _reported_suffixes}
    _reported_suffixes.update(new)
    if new:
        listed = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(new.items()))
        logger.warning(f"{where}: skipped files that are neither images nor their texts ({listed}).")


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
    return Image.open(source, formats=_used_formats())


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
    "image_suffixes",
    "is_machine_error",
    "is_visible",
    "list_images",
    "open_image",
    "register_plugins",
    "view_image",
    "visible_files",
    "warn_of_other_files",
]
