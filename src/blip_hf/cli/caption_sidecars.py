# SPDX-License-Identifier: BSD-3-Clause
"""Text files beside images: `1.txt` for `1.jpg`, as trainers of image models read them."""

import os
from pathlib import Path

from .errors import UsageError
from .image_sources import FoundImages


SEPARATOR = ", "
"""Between a text that is there and an appended caption. Trainers such as kohya's read the first line only."""


def sidecar_paths(images: FoundImages, output_dir: Path | None, extension: str) -> list[Path]:
    """The text file of each image: beside it, or under `output_dir` at the same place as under its source.

    Raises:
        UsageError: If an image is not a file of its own.
    """
    paths = []
    for name, folder in zip(images.names, images.folders, strict=True):
        if folder is None:
            raise UsageError(
                f"--format sidecar takes image files and folders, and the image {name} comes from a data set. Pass"
                " --output FILE."
            )
        path = Path(name)
        place = path if output_dir is None else output_dir / path.relative_to(folder)
        paths.append(place.with_suffix(extension))
    return paths


def checked_extension(extension: str) -> str:
    """The extension with its dot."""
    from ..image_files import image_suffixes

    extension = f".{extension.removeprefix('.')}"
    if extension == "." or os.sep in extension or extension.lower() in {".json", *image_suffixes()}:
        raise UsageError(f"--extension {extension} is not for text files. Pass .txt or .caption.")
    return extension


def sidecar_exists(path: Path) -> bool:
    """Whether a text file is there. Raises `OSError` if the file system refuses its name."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def write_sidecar(path: Path, text: str, *, append: bool) -> None:
    """Writes a text file atomically. Appending a text that the file ends with does nothing."""
    if append and path.exists():
        old = path.read_text(encoding="utf-8-sig").rstrip()
        if old == text or old.endswith(SEPARATOR + text):
            return
        text = f"{old}{SEPARATOR}{text}" if old else text
    path.parent.mkdir(parents=True, exist_ok=True)
    # A short name, because that of the image may be as long as the file system allows; and always the same one, so that
    # a killed process leaves nothing that its next run does not replace.
    part = path.with_name(".blip-hf-sidecar.part")
    part.write_text(f"{text}\n", encoding="utf-8", newline="\n")
    part.replace(path)


__all__ = ["SEPARATOR", "checked_extension", "sidecar_exists", "sidecar_paths", "write_sidecar"]
