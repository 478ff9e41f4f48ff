# SPDX-License-Identifier: BSD-3-Clause
"""Tells which files are images, and finds them in folders."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from PIL import Image
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Pillow names these formats but has no decoder for them, or runs Ghostscript to decode them (EPS).
_UNUSED_FORMATS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})


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
def image_formats() -> list[str]:
    """Formats that are decoded, also for files with the suffix of another one."""
    register_plugins()
    return [name for name in Image.OPEN if name not in _UNUSED_FORMATS]


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of the image files that Pillow and its installed plug-ins decode, in lower case with the dot."""
    formats = image_formats()
    return frozenset(suffix.lower() for suffix, name in Image.registered_extensions().items() if name in formats)


def list_images(folder: str | os.PathLike[str], *, recursive: bool = False, follow_links: bool = False) -> list[Path]:
    """Lists the images of a folder by suffix, sorted by path, without hidden files. Warns about other files.

    With `recursive`, also those of subfolders, and with `follow_links` those of linked folders, each folder once.
    """
    images: list[Path] = []
    others: Counter[str] = Counter()
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


def warn_of_other_files(where: object, counts: Mapping[str, int]) -> None:
    """Warns about skipped files, once for each suffix."""
    new = {suffix: count for suffix, count in counts.items() if suffix not in _reported_suffixes}
    _reported_suffixes.update(new)
    if new:
        listed = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(new.items()))
        logger.warning(f"{where}: skipped files that are neither images nor their texts ({listed}).")


__all__ = [
    "image_formats",
    "image_suffixes",
    "is_visible",
    "list_images",
    "register_plugins",
    "visible_files",
    "warn_of_other_files",
]
