# SPDX-License-Identifier: BSD-3-Clause
"""Images that commands take: files, folders of images, and every source of the readers."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UsageError


if TYPE_CHECKING:
    from datasets import Dataset

    from ..image_utils import ImageSource


class FoundImages(Sequence):
    """Images in order, with their names. Those of a data set are read from it one at a time."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.folders: list[Path | None] = []
        """The folder or the parent that each image file was found in; `None` for images of a data set."""
        self._starts: list[int] = []
        self._parts: list[Sequence[Any]] = []

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> "ImageSource":  # type: ignore[override]  # no slices
        if index >= len(self):
            raise IndexError(index)
        part = bisect_right(self._starts, index) - 1
        image = self._parts[part][index - self._starts[part]]
        return image if isinstance(image, Path) else image["image"]

    def add_files(self, paths: Sequence[Path], folder: Path) -> None:
        """Appends image files of a folder."""
        self._add(paths, map(str, paths), folder)

    def add_records(self, records: "Dataset") -> None:
        """Appends the images of a data set."""
        self._add(records, map(str, records["source_id"]), None)

    def _add(self, part: Sequence[Any], names: Iterable[str], folder: Path | None) -> None:
        self._starts.append(len(self.names))
        self._parts.append(part)
        self.names += names
        self.folders += [folder] * len(part)


def find_images(
    sources: Iterable[str],
    *,
    recursive: bool = False,
    follow_links: bool = False,
    image_root: str | None = None,
    allow_outside: bool = False,
    split: str = "train",
) -> FoundImages:
    """Replaces each folder by its images, sorted by path, and each file of records by the images it names or holds.

    Raises:
        UsageError: If only the subfolders of a folder hold images, and `recursive` is not set.
        ValueError: If a source of records does not exist or does not fit.
    """
    from ..data.readers import load_images
    from ..image_files import list_images

    found = FoundImages()
    for source in sources:
        path = Path(source)
        if path.is_dir() and (images := list_images(path, recursive=recursive, follow_links=follow_links)):
            found.add_files(images, path)
        elif path.is_dir() and list_images(path, recursive=True, follow_links=follow_links):
            raise UsageError(f"{path} holds images in its subfolders only. Pass --recursive.")
        elif is_image(source):
            found.add_files([path], path.parent)
        else:
            images = load_images(source, image_root=image_root, allow_outside=allow_outside, split=split)
            found.add_records(_undecoded(images))
    return found


def _undecoded(records: "Dataset") -> "Dataset":
    """The same records with encoded images: workers decode them, and a broken one ends nothing here."""
    import datasets

    if isinstance(records.features["image"], datasets.Image):
        return records.cast_column("image", datasets.Image(decode=False))
    return records


def is_image(source: str) -> bool:
    """Whether a source is one image: a file without records, or the path of an image that does not exist."""
    from ..data.readers.sources import kind_of
    from ..image_files import image_suffixes

    path = Path(source)
    if path.is_file():
        return kind_of(path) in (None, "image")
    return path.suffix.lower() in image_suffixes() and not set("*?[{") & set(source)


__all__ = ["FoundImages", "find_images", "is_image"]
