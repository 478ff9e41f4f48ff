# SPDX-License-Identifier: BSD-3-Clause
"""Images that `blip-hf caption` finds: files, folders of images, and every source of the readers."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UsageError


if TYPE_CHECKING:
    from ..image_utils import ImageSource


class FoundImages:
    """Images in order, with their names. Those of a data set are read from it one at a time."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._parts: list[Iterable[ImageSource]] = []

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> "Iterator[ImageSource]":
        for part in self._parts:
            yield from part

    def add(self, names: Iterable[object], images: "Iterable[ImageSource]") -> None:
        """Appends images."""
        self.names += map(str, names)
        self._parts.append(images)


def find_images(
    sources: Iterable[str], *, recursive: bool = False, image_root: str | None = None, split: str = "train"
) -> FoundImages:
    """Replaces each folder by its images, sorted by path, and each file of records by the images it names or holds.

    Raises:
        UsageError: If only the subfolders of a folder hold images, and `recursive` is not set.
        ValueError: If a source of records does not exist or does not fit.
    """
    from ..data.readers import load_images
    from ..image_utils import list_images

    found = FoundImages()
    for source in sources:
        path = Path(source)
        if path.is_dir() and (images := list_images(path, recursive=recursive)):
            found.add(images, images)
        elif path.is_dir() and list_images(path, recursive=True):
            raise UsageError(f"{path} holds images in its subfolders only. Pass --recursive.")
        elif _is_image(source):
            found.add([path], [path])
        else:
            records = load_images(source, image_root=image_root, split=split)
            found.add(records["source_id"], (record["image"] for record in records))
    return found


def _is_image(source: str) -> bool:
    """Whether a source is one image: a file without records, or the path of an image that does not exist."""
    from ..data.readers.sources import kind_of
    from ..image_utils import image_suffixes

    path = Path(source)
    if path.is_file():
        return kind_of(path) in (None, "image")
    return path.suffix.lower() in image_suffixes() and not set("*?[{") & set(source)


__all__ = ["FoundImages", "find_images"]
