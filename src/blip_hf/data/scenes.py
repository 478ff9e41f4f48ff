# SPDX-License-Identifier: BSD-3-Clause
"""The embedded data: an endless series of drawn images with exact captions, of which a data set is a stretch."""

import operator
import random
from collections.abc import Sequence
from typing import TypedDict

from PIL import Image

from .scene_drawing import draw_scene
from .scene_language import caption_of, questions_about, scene_vocabulary_texts, shared_property_sentence
from .scene_layout import Scene, sample_scene


class SceneRecord(TypedDict):
    """A pair of the package's record form, with `is_swapped` to tell a noisy caption."""

    image: Image.Image
    caption: str
    image_id: int
    is_swapped: bool


class Nlvr2Record(TypedDict):
    """Two images, a sentence about both and whether it is true."""

    images: list[Image.Image]
    sentence: str
    label: bool


class Scenes(Sequence[SceneRecord]):
    """Images of coloured shapes with captions of their size, colour, shape, place, number or relation.

    Scene `index` depends on `seed` and `index` only, so stretches with different `start` never share a scene: train on
    `Scenes(10_000)` and test on `Scenes(500, start=10_000)`. There are several thousand captions; equal captions of
    different scenes do occur.

    Args:
        num_scenes (`int`):
            Number of scenes.
        start (`int`, *optional*, defaults to 0):
            Index of the first one.
        seed (`int`, *optional*, defaults to 0):
            Seed of the whole series.
        image_size (`int`, *optional*, defaults to 64):
            Width and height of the images in pixels, at least 32.
        noise_rate (`float`, *optional*, defaults to 0.0):
            Share of the captions, in [0, 1), exchanged for one of another scene that reads differently. Scenes swapped
            at one rate stay swapped, to the same caption, at each higher rate.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> scenes = Scenes(1_000)
        >>> scenes[2]["caption"]
        'a large green star in the top right'
        >>> scenes[2]["image"].size
        (64, 64)
    """

    def __init__(
        self, num_scenes: int, *, start: int = 0, seed: int = 0, image_size: int = 64, noise_rate: float = 0.0
    ) -> None:
        if num_scenes < 1:
            raise ValueError(f"num_scenes={num_scenes} leaves nothing to show; pass 1 or more.")
        if start < 0:
            raise ValueError(f"start={start} is before the first scene; pass 0 or more.")
        if image_size < 32:
            raise ValueError(f"image_size={image_size} is too small to tell the shapes apart; pass 32 or more.")
        if not 0 <= noise_rate < 1:
            raise ValueError(f"noise_rate={noise_rate} is not a share of the captions; pass a value in [0, 1).")
        self.num_scenes = num_scenes
        self.start = start
        self.seed = seed
        self.image_size = image_size
        self.noise_rate = noise_rate

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, i: int) -> SceneRecord:
        index = self._index(i)
        caption, is_swapped = self._caption(index)
        return {"image": self._draw(index), "caption": caption, "image_id": index, "is_swapped": is_swapped}

    def captions(self) -> list[str]:
        """All captions in order, noise included, without drawing an image."""
        return [self._caption(self._index(i))[0] for i in range(len(self))]

    def true_caption(self, i: int) -> str:
        """The caption that fits image `i`, whether it was swapped or not."""
        return caption_of(self._scene(self._index(i)))

    def questions(self, i: int) -> list[dict[str, str]]:
        """Questions about image `i`, as items with the keys `question` and `answer`.

        See [`~blip_hf.data.scene_language.questions_about`]. Noise in the captions does not touch them.
        """
        index = self._index(i)
        return questions_about(self._scene(index), self._rng(index, "questions"))

    def reasoning(self, i: int) -> Nlvr2Record:
        """Image `i` and another one, in any order, with a sentence about both that is true for every second `i`.

        The other image is drawn for this record alone, so that stretches share none.
        """
        index = self._index(i)
        rng = self._rng(index, "reasoning")
        wanted, label = index % 2 == 0, None
        while label != wanted:
            other = sample_scene(rng)
            sentence, label = shared_property_sentence(self._scene(index), other, rng)
        images = [self._draw(index), draw_scene(other, self.image_size)]
        rng.shuffle(images)
        return {"images": images, "sentence": sentence, "label": wanted}

    def _index(self, i: int) -> int:
        """Index in the series of item `i`; negative items count from the end."""
        return range(self.start, self.start + self.num_scenes)[operator.index(i)]

    def _rng(self, index: int, purpose: str) -> random.Random:
        # A string is hashed the same way on every machine and in every process.
        return random.Random(f"{self.seed}/{index}/{purpose}")

    def _scene(self, index: int) -> Scene:
        return sample_scene(self._rng(index, "scene"))

    def _draw(self, index: int) -> Image.Image:
        return draw_scene(self._scene(index), self.image_size)

    def _caption(self, index: int) -> tuple[str, bool]:
        """Caption at an index, and whether it belongs to another scene."""
        caption = true_caption = caption_of(self._scene(index))
        rng = self._rng(index, "noise")
        is_swapped = rng.random() < self.noise_rate
        while is_swapped and caption == true_caption:
            caption = caption_of(self._scene(self._other_index(index, rng)))
        return caption, is_swapped

    def _other_index(self, index: int, rng: random.Random) -> int:
        """Index of some other scene, of the million at the head of the series."""
        return (index + rng.randrange(1, 1_000_000)) % 1_000_000


__all__ = ["Nlvr2Record", "SceneRecord", "Scenes", "scene_vocabulary_texts"]
