# SPDX-License-Identifier: BSD-3-Clause
"""Synthetic scenes with exact captions, questions and sentences, for the demo and for tests without a download."""

import operator
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from PIL import Image

from .scene_drawing import draw_scene
from .scene_language import caption_of, questions_about, scene_vocabulary_texts, shared_property_sentence
from .scene_layout import Scene, sample_scene


if TYPE_CHECKING:
    from .readers.vqa_fields import VqaRecord


class SceneRecord(TypedDict):
    """An image-text pair. `is_swapped` is true for a noisy caption."""

    image: Image.Image
    caption: str
    image_id: int
    is_swapped: bool


class Scenes(Sequence[SceneRecord]):
    """Images of coloured shapes with captions of their size, colour, shape, place, number or relation.

    Scene `index` depends only on `seed` and `index`: train on `Scenes(10_000)` and test on `Scenes(500, start=10_000)`.
    Different scenes may have the same caption.

    Args:
        start (`int`, *optional*, defaults to 0):
            Index of the first scene.
        image_size (`int`, *optional*, defaults to 64):
            Width and height of the images in pixels, at least 32.
        noise_rate (`float`, *optional*, defaults to 0.0):
            Fraction of the captions, in [0, 1), to replace by the caption of another scene. A scene swapped at one
            rate has the same wrong caption at each higher rate.

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
            raise ValueError(f"num_scenes={num_scenes} is too small; pass 1 or more.")
        if start < 0:
            raise ValueError(f"start={start} is before the first scene; pass 0 or more.")
        if image_size < 32:
            raise ValueError(f"image_size={image_size} is too small to distinguish the shapes; pass 32 or more.")
        if not 0 <= noise_rate < 1:
            raise ValueError(f"noise_rate={noise_rate} is not a fraction of the captions; pass a value in [0, 1).")
        self.num_scenes = num_scenes
        self.start = start
        self.seed = seed
        self.image_size = image_size
        self.noise_rate = noise_rate

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, i: int) -> SceneRecord:  # type: ignore[override]  # no slices
        index = self._index(i)
        caption, is_swapped = self._caption(index)
        return {"image": self._draw(index), "caption": caption, "image_id": index, "is_swapped": is_swapped}

    def captions(self) -> list[str]:
        """All captions in order, noise included, without drawing an image."""
        return [self._caption(self._index(i))[0] for i in range(len(self))]

    def true_caption(self, i: int) -> str:
        """The correct caption of image `i`, also if it was swapped."""
        return caption_of(self._scene(self._index(i)))

    def questions(self, i: int) -> list[dict[str, str]]:
        """Questions about image `i`, as items `{"question", "answer"}`, without noise."""
        index = self._index(i)
        return questions_about(self._scene(index), self._rng(index, "questions"))

    def nlvr2_record(self, i: int) -> dict[str, Any]:
        """Image `i` and a new one, in random order, with a sentence about both that is true for every second `i`."""
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
        """Index in the series of item `i`."""
        return range(self.start, self.start + self.num_scenes)[operator.index(i)]

    def _rng(self, index: int, purpose: str) -> random.Random:
        # A string is hashed the same way on every machine and in every process.
        return random.Random(f"{self.seed}/{index}/{purpose}")

    def _scene(self, index: int) -> Scene:
        return sample_scene(self._rng(index, "scene"))

    def _draw(self, index: int) -> Image.Image:
        return draw_scene(self._scene(index), self.image_size)

    def _caption(self, index: int) -> tuple[str, bool]:
        caption = true_caption = caption_of(self._scene(index))
        rng = self._rng(index, "noise")
        is_swapped = rng.random() < self.noise_rate
        while is_swapped and caption == true_caption:
            caption = caption_of(self._scene(self._other_index(index, rng)))
        return caption, is_swapped

    def _other_index(self, index: int, rng: random.Random) -> int:
        """Index of another scene among the first million."""
        return (index + rng.randrange(1, 1_000_000)) % 1_000_000


class SceneVqa(Sequence["VqaRecord"]):
    """Questions about scenes as VQA records with one correct answer. Images are drawn on access.

    Example:
        >>> questions = SceneVqa(Scenes(100))
        >>> questions[2]["question"], questions[2]["answers"], questions[2]["weights"]
        ('what colour is the ring?', ['green'], [1.0])
    """

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes
        self._rows = [
            (scene, pair["question"], pair["answer"])
            for scene in range(len(scenes))
            for pair in scenes.questions(scene)
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> "VqaRecord":  # type: ignore[override]  # no slices
        index = range(len(self))[operator.index(i)]
        scene, question, answer = self._rows[index]
        image = self.scenes[scene]["image"]
        return {"image": image, "question": question, "question_id": index, "answers": [answer], "weights": [1.0]}

    def answers(self) -> list[list[str]]:
        """Answers of all questions in order, without drawing an image."""
        return [[answer] for _, _, answer in self._rows]


class SceneNlvr2(Sequence[dict[str, Any]]):
    """Pairs of scenes as NLVR2 records with sentences such as "both pictures show a star"; half of them are true.

    Example:
        >>> record = SceneNlvr2(100)[2]
        >>> record["sentence"], record["label"], [image.size for image in record["images"]]
        ('both pictures show a star', True, [(64, 64), (64, 64)])
    """

    def __init__(self, num_pairs: int, *, start: int = 0, seed: int = 0, image_size: int = 64) -> None:
        self.scenes = Scenes(num_pairs, start=start, seed=seed, image_size=image_size)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, i: int) -> dict[str, Any]:  # type: ignore[override]  # no slices
        return self.scenes.nlvr2_record(i)


__all__ = ["SceneNlvr2", "SceneRecord", "SceneVqa", "Scenes", "scene_vocabulary_texts"]
