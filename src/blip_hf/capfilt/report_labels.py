# SPDX-License-Identifier: BSD-3-Clause
"""Labels of web texts, whether they match their image, in the order of the score table."""

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


# From the name of a shard and its scores of web texts to one boolean per row: whether the text matches its image
LabelReader = Callable[[str, pa.Table], np.ndarray]


def find_labels(
    labels: str | os.PathLike[str] | Sequence[int] | None, source: Any, shards: Callable[[], Iterable[Shard]]
) -> LabelReader | None:
    """Returns a reader of the given labels, one per record of the source, or of those of drawn scenes."""
    if labels is not None:
        content = read_json(Path(labels)) if isinstance(labels, (str, os.PathLike)) else labels
        return _ListedLabels(shards(), content).read
    if isinstance(source, str) and source.startswith("scenes:"):
        return _SceneLabels(parse_scenes(source)).read
    return None


class _SceneLabels:
    """Labels of scenes: a text is correct if it is the caption of the scene."""

    def __init__(self, scenes: Scenes) -> None:
        self._scenes = scenes

    def read(self, _: str, table: pa.Table) -> np.ndarray:
        indices, texts = table["image_id"].to_pylist(), table["text"].to_pylist()
        pairs = zip(indices, texts, strict=True)
        return np.array(
            [text == self._scenes.true_caption(int(index) - self._scenes.start) for index, text in pairs], dtype=bool
        )


class _ListedLabels:
    """Labels in the order of the records of the source, including those that were skipped."""

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
                f"There are {len(self._labels)} labels, but {num_records} records in the source of the run. Pass one label"
                " per record, in the same order."
            )

    def read(self, shard_name: str, table: pa.Table) -> np.ndarray:
        start, digests = self._texts.get(shard_name, (0, []))
        place, places = -1, []
        try:
            for image_id, text in zip(table["image_id"].to_pylist(), table["text"].to_pylist(), strict=True):
                # Rows are in the order of the records, so the next equal record is that of the row.
                place = digests.index(_digest(image_id, text), place + 1)
                places.append(start + place)
        except ValueError as error:
            raise ValueError(
                f"The source of the run lacks the text {text!r} of {shard_name}, or has another order. Labels need the"
                " source that was scored."
            ) from error
        return self._labels[places].astype(bool)


def _digests(shard: Shard) -> Iterator[int | None]:
    """Yields the hash of each text of a shard, and `None` for a skipped record, before records are merged."""
    for item in shard.read():
        if isinstance(item, Sample):
            yield from (_digest(item.image_id, text) for text in item.texts)
        else:
            yield None


def _digest(image_id: str, text: str) -> int:
    return int.from_bytes(blake2b(f"{image_id}\n{text}".encode(), digest_size=8).digest())


__all__ = ["LabelReader", "find_labels"]
