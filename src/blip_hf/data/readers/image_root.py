# SPDX-License-Identifier: BSD-3-Clause
"""The folder that the image paths of a source start from, and may not leave."""

import os
from dataclasses import dataclass


PathLike = str | os.PathLike[str]


class OutsideFolderError(ValueError):
    """Raised for the path of an image outside the folder of its source."""


@dataclass(frozen=True)
class ImageRoot:
    """Joins image paths to a folder. Paths are compared as written: a link inside the folder may lead out of it.

    Without a folder, as for files at addresses, images must be stored as bytes.
    """

    folder: PathLike | None
    allow_outside: bool = False

    def join(self, path: str, where: str) -> str:
        """The full path of an image. Raises `OutsideFolderError` if it is outside the folder. `where` starts the message."""
        if self.folder is None:
            raise OutsideFolderError(
                f"{where}: image {path!r} is a path, and images of files at addresses must be stored in them. Pass image_root"
                " (--image_root) with the local folder of the images."
            )
        joined = os.path.join(self.folder, path)
        if not (self.allow_outside or _is_inside(self.folder, path, joined)):
            raise OutsideFolderError(
                f"{where}: image {path!r} is outside the folder {os.fspath(self.folder) or '.'!r}. Pass image_root"
                " (--image_root) with a folder that contains all images, or allow_outside=True (--allow_outside) if you"
                " trust the source."
            )
        return joined


def _is_inside(folder: PathLike, path: str, joined: str) -> bool:
    if not os.path.isabs(path) and ".." not in path:
        return True
    if _contains(os.path.abspath(folder), os.path.abspath(joined)):
        return True
    return "\0" not in path and _contains(os.path.realpath(folder), os.path.realpath(joined))


def _contains(folder: str, path: str) -> bool:
    return path.startswith(os.path.join(folder, ""))


__all__ = ["ImageRoot", "OutsideFolderError", "PathLike"]
