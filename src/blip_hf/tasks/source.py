# SPDX-License-Identifier: BSD-3-Clause
"""Data that options name: files, or drawn scenes by number. Imports nothing heavy, so that `--help` is quick."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import datasets

    from ..data.scenes import Scenes

SCENES = "scenes"


@dataclass(frozen=True)
class Source:
    """Data to train or to evaluate on: files, or drawn scenes by number."""

    data: list[str]
    image_root: str | None
    first_scene: int
    num_scenes: int
    split: str | None = None
    annotations: str | None = None
    allow_outside: bool = False

    @property
    def is_scenes(self) -> bool:
        """Whether the data are drawn scenes alone."""
        return len(self.data) == 1 and is_scenes(self.data[0])

    def singly(self) -> "list[Source]":
        """Returns each source alone."""
        return [replace(self, data=[source]) for source in self.data]

    def scenes(self, image_size: int) -> "Scenes":
        """Returns the drawn scenes: `num_scenes` for `scenes`, and NUMBER for `scenes:NUMBER[:NOISE]`."""
        from ..data.readers.scenes import parse_scenes
        from ..data.scenes import Scenes

        (source,) = self.data
        named = parse_scenes(f"{SCENES}:{self.num_scenes}" if source == SCENES else source)
        return Scenes(len(named), start=self.first_scene, image_size=image_size, noise_rate=named.noise_rate)

    def read_pairs(self, image_size: int) -> "datasets.Dataset | Scenes":
        """Returns records of image-text pairs."""
        from ..data.readers import load_pairs

        if self.is_scenes:
            return self.scenes(image_size)
        return load_pairs(
            one_or_several(self.data),
            image_root=self.image_root,
            allow_outside=self.allow_outside,
            split=self.split or "train",
        )


def is_scenes(source: str) -> bool:
    """Returns whether a source is `scenes` or `scenes:NUMBER[:NOISE]`."""
    return source == SCENES or source.startswith(f"{SCENES}:")


def count_scenes(data: list[str], num_scenes: int) -> int:
    """Returns how many of the first scenes a training set uses at most."""
    from ..data.readers.scenes import parse_scenes

    numbered = [source for source in data if is_scenes(source) and source != SCENES]
    return max((len(parse_scenes(source)) for source in numbered), default=num_scenes)


def one_or_several(sources: list[str]) -> str | list[str]:
    """Returns a single source alone, which may then be a folder or a name."""
    return sources[0] if len(sources) == 1 else sources


__all__ = ["SCENES", "Source", "count_scenes", "is_scenes", "one_or_several"]
