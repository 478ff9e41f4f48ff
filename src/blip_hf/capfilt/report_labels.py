# SPDX-License-Identifier: BSD-3-Clause
"""What is known of web texts, brought into the order of their scores: which fit their image and which were swapped."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..data.readers.records import read_json
from ..data.readers.samples import Sample, Shard
from ..data.readers.scenes import parse_scenes
from ..data.scenes import Scenes


# Takes the name of a shard and its scores of web texts, and gives a boolean a row: whether the text is right.
LabelReader = Callable[[str, pa.Table], np.ndarray]


def find_labels(
    labels: str | os.PathLike[str] | Sequence[int] | None, source: Any, shards: Callable[[], Iterable[Shard]]
) -> LabelReader | None:
    """What reads the labels of a run's web texts.

    Args:
        labels (`str`, `Path` or sequence of `int`, *optional*):
            1 for right and 0 for swapped, or the JSON list of these, one a record of the source.
        source (`str` or list of `str`):
            The source. Drawn scenes are their own labels.
        shards (`Callable`):
            Finds the shards of the source; called for given labels only.

    Returns:
        `Callable`, *optional*: from the name of a shard and its table of web texts to `bool` values, one a row. `None` if
        nothing is known.

    Raises:
        ValueError: If there are more or fewer labels than records.
    """
    if labels is not None:
        content = read_json(Path(labels)) if isinstance(labels, (str, os.PathLike)) else labels
        return _ListedLabels(shards(), content).read
    if isinstance(source, str) and source.startswith("scenes:"):
        return _SceneLabels(parse_scenes(source)).read
    return None


class _SceneLabels:
    """A text of a scene is right if it is the scene's caption."""

    def __init__(self, scenes: Scenes) -> None:
        self._scenes = scenes

    def read(self, _: str, table: pa.Table) -> np.ndarray:
        indices, texts = table["image_id"].to_pylist(), table["text"].to_pylist()
        pairs = zip(indices, texts, strict=True)
        return np.array(
            [text == self._scenes.true_caption(int(index) - self._scenes.start) for index, text in pairs], dtype=bool
        )


class _ListedLabels:
    """Labels in the order of the records, some of which have no score as they were left out.

    Args:
        shards (iterable of [`~blip_hf.data.readers.samples.Shard`]):
            The whole source, in order.
        labels (sequence of `int`):
            One for each text, and one for each record that is at fault.
    """

    def __init__(self, shards: Iterable[Shard], labels: Sequence[int]) -> None:
        self._labels = np.asarray(labels)
        self._texts: dict[str, tuple[int, list[int | None]]] = {}
        num_records = 0
        for shard in shards:
            digests = list(_digests(shard))
            self._texts[shard.name] = (num_records, digests)
            num_records += len(digests)
        if num_records != len(self._labels):
            raise ValueError(
                f"there are {len(self._labels)} labels, but {num_records} records in the source of the run. Give one a"
                " record, in their order."
            )

    def read(self, shard_name: str, table: pa.Table) -> np.ndarray:
        start, digests = self._texts.get(shard_name, (0, []))
        place, places = -1, []
        try:
            for image_id, text in zip(table["image_id"].to_pylist(), table["text"].to_pylist(), strict=True):
                # Rows have the order of the records, so the next equal record is the row's own.
                place = digests.index(_digest(image_id, text), place + 1)
                places.append(start + place)
        except ValueError as error:
            raise ValueError(
                f"the scores of {shard_name} have the text {text!r}, which the source of the run has not, or in another"
                " order. Pass labels only while the source is as it was."
            ) from error
        return self._labels[places].astype(bool)


def _digests(shard: Shard) -> Iterator[int | None]:
    """Which text each record of a shard has, and `None` for a fault, before records of an image are merged."""
    for item in shard.read():
        if isinstance(item, Sample):
            yield from (_digest(item.image_id, text) for text in item.texts)
        else:
            yield None


def _digest(image_id: str, text: str) -> int:
    return int.from_bytes(blake2b(f"{image_id}\n{text}".encode(), digest_size=8).digest())


__all__ = ["LabelReader", "find_labels"]
