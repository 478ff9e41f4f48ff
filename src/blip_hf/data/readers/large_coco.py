# SPDX-License-Identifier: BSD-3-Clause
"""COCO's caption files that are too large for Python objects: joins captions with images by their places in the file.

Gives the same records as `coco.py`.
"""

from collections.abc import Iterator

import numpy as np

from .coco import list_of, read_coco_image, unknown_image_error
from .json_files import JsonArray
from .places import PLACE, IdIndex, key_of, read_place, store_places
from .records import Record, check_record, read_id, read_text


_NUM_CHUNKS = 64


def large_coco_records(content: Record, name: str, *, needs_captions: bool = True) -> Iterator[Record]:
    """Same as [`coco_records`], for the content of [`read_json_outline`]."""
    array = list_of(content, "images", name)
    places = store_places(_image_places(array, name))
    images = IdIndex(places["key"])
    if "annotations" in content or needs_captions:
        captions = store_places(_caption_places(content, name, images))
    else:
        captions = np.empty(0, PLACE)
    newest = images.newest
    del images
    with array.path.open("rb") as image_file, array.path.open("rb") as caption_file:
        for row, of_image in _group(captions, newest):
            if len(of_image) or not needs_captions:
                image = read_place(image_file, places[newest[row]])
                texts = [read_place(caption_file, captions[caption])["caption"] for caption in of_image]
                yield {"image": image["file_name"], "caption": texts, "image_id": image["id"]}


def _image_places(array: JsonArray, name: str) -> Iterator[tuple[int, int, int]]:
    for number, (start, stop, image) in enumerate(array.located()):
        where = f"{name}, images, record {number}"
        yield key_of(read_coco_image(check_record(image, where, "file_name"), where)), start, stop - start


def _caption_places(content: Record, name: str, images: IdIndex) -> Iterator[tuple[int, int, int]]:
    for number, (start, stop, annotation) in enumerate(list_of(content, "annotations", name).located()):
        where = f"{name}, annotations, record {number}"
        image_id = read_id(check_record(annotation, where, "caption"), "image_id", where)
        row = images.row_of(key_of(image_id))
        if row is None:
            raise unknown_image_error(image_id, where)
        read_text(annotation, "caption", where)
        yield row, start, stop - start


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


__all__ = ["large_coco_records"]
