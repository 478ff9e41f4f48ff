# SPDX-License-Identifier: BSD-3-Clause
"""COCO's caption files that are too large for Python objects: joins captions with images by their places in the file.

Gives the same records as `coco.py`. Places are in temporary files, which are memory-mapped.
"""

import json
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from .arrow_cache import writable_folder
from .coco import list_of, read_coco_image, unknown_image_error
from .json_files import JsonArray
from .records import Record, check_record, read_id, read_text


# `key` is the key of an image's id, or for a caption the row of its image.
_PLACE = np.dtype([("key", np.int64), ("start", np.int64), ("size", np.int32)])
_ROWS_PER_WRITE = 10_000
_NUM_CHUNKS = 64


def large_coco_records(content: Record, name: str, *, needs_captions: bool = True) -> Iterator[Record]:
    """Same as [`coco_records`], for the content of [`read_json_object`]."""
    array = _array_of(content, "images", name)
    places = _stored(_image_places(array, name))
    images = _Images(places)
    if "annotations" in content or needs_captions:
        captions = _stored(_caption_places(content, name, images))
    else:
        captions = np.empty(0, _PLACE)
    newest = images.newest
    del images
    with array.path.open("rb") as image_file, array.path.open("rb") as caption_file:
        for row, of_image in _group(captions, newest):
            if len(of_image) or not needs_captions:
                image = _read(image_file, places[newest[row]])
                texts = [_read(caption_file, captions[caption])["caption"] for caption in of_image]
                yield {"image": image["file_name"], "caption": texts, "image_id": image["id"]}


def _array_of(content: Record, field: str, name: str) -> JsonArray:
    array = list_of(content, field, name)
    assert isinstance(array, JsonArray)  # that is how such a file is read
    return array


def _image_places(array: JsonArray, name: str) -> Iterator[tuple[int, int, int]]:
    for number, (start, stop, image) in enumerate(array.located()):
        where = f"{name}, images, record {number}"
        yield _key(read_coco_image(check_record(image, where, "file_name"), where)), start, stop - start


def _caption_places(content: Record, name: str, images: "_Images") -> Iterator[tuple[int, int, int]]:
    for number, (start, stop, annotation) in enumerate(_array_of(content, "annotations", name).located()):
        where = f"{name}, annotations, record {number}"
        image_id = read_id(check_record(annotation, where, "caption"), "image_id", where)
        row = images.row_of(_key(image_id))
        if row is None:
            raise unknown_image_error(image_id, where)
        read_text(annotation, "caption", where)
        yield row, start, stop - start


def _key(image_id: int | str) -> int:
    """The id, or a hash of 64 bits: with 10,000,000 texts, two are equal with a probability of 3e-6."""
    return image_id if isinstance(image_id, int) else hash(image_id)


class _Images:
    """Finds images by the keys of their ids. As in a mapping, the last record with an id replaces the content of the first."""

    def __init__(self, places: np.ndarray) -> None:
        order = np.argsort(places["key"], kind="stable").astype(np.uint32)
        keys = places["key"][order]
        is_start = np.concatenate([[True], keys[1:] != keys[:-1]])
        self.keys = keys[is_start]
        self.rows = order[is_start]  # the first record with each key
        # For each first record the last one with the same key, otherwise -1.
        self.newest = np.full(len(places), -1, np.int32)
        self.newest[self.rows] = order[np.concatenate([is_start[1:], [True]])]

    def row_of(self, key: int) -> int | None:
        """The first record with a key."""
        position = self.keys.searchsorted(key)
        return int(self.rows[position]) if position < len(self.keys) and self.keys[position] == key else None


def _group(captions: np.ndarray, newest: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The row of each image with the rows of its captions, in order. Sorts the captions of some images at a time."""
    rows = captions["key"].astype(np.int32)
    step = len(newest) // _NUM_CHUNKS + 1
    for start in range(0, len(newest), step):
        of_chunk = np.flatnonzero((rows >= start) & (rows < start + step))
        of_chunk = of_chunk[np.argsort(rows[of_chunk], kind="stable")]
        images = start + np.flatnonzero(newest[start : start + step] >= 0)
        starts, stops = (np.searchsorted(rows[of_chunk], images, side=side) for side in ("left", "right"))
        for row, first, stop in zip(images.tolist(), starts, stops, strict=True):
            yield row, of_chunk[first:stop]


# Places


def _stored(places: Iterator[tuple[int, int, int]]) -> np.ndarray:
    """Places in a temporary file, which is removed with the array."""
    with tempfile.TemporaryFile(dir=writable_folder()) as file:
        batch: list[tuple[int, int, int]] = []
        for place in places:
            batch.append(place)
            if len(batch) == _ROWS_PER_WRITE:
                file.write(np.array(batch, _PLACE).data)
                batch.clear()
        file.write(np.array(batch, _PLACE).data)
        file.flush()
        return np.memmap(file, _PLACE, mode="r")


def _read(file: BinaryIO, place: np.void) -> Any:
    file.seek(int(place["start"]))
    return json.loads(file.read(int(place["size"])))


__all__ = ["large_coco_records"]
