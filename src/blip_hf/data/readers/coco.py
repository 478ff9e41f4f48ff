# SPDX-License-Identifier: BSD-3-Clause
"""COCO's caption files: `images` with `id` and `file_name`, `annotations` with `image_id` and `caption`."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .json_files import JsonArray
from .records import Record, check_record, field_error, read_id, read_path, read_text


# File names of the sets of 2014 and 2017. No id has more than six digits.
_COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?0{6}(\d{6})\.jpg")


def coco_records(content: Record, name: str, *, needs_captions: bool = True) -> list[Record]:
    """One record `{"image", "caption", "image_id"}` per image; with `needs_captions`, only images with captions.

    Example:
        >>> content = {
        ...     "images": [{"id": 9, "file_name": "9.jpg"}, {"id": 4, "file_name": "4.jpg"}],
        ...     "annotations": [{"image_id": 9, "caption": "a cat"}, {"image_id": 9, "caption": "an animal"}],
        ... }
        >>> coco_records(content, "captions.json")
        [{'image': '9.jpg', 'caption': ['a cat', 'an animal'], 'image_id': 9}]
    """
    images = coco_images(content, name)
    captions = coco_captions(content, name, images) if "annotations" in content or needs_captions else {}
    return [
        {"image": image["file_name"], "caption": captions.get(image_id, []), "image_id": image_id}
        for image_id, image in images.items()
        if image_id in captions or not needs_captions
    ]


def coco_images(content: Record, name: str) -> dict[int | str, Record]:
    """The records of `images` by id."""
    return {read_coco_image(image, where): image for where, image in listed(content, "images", name, "file_name")}


def read_coco_image(image: Record, where: str) -> int | str:
    """The id of an image. Raises `ValueError` if it has no path."""
    read_path(image, "file_name", where)
    return read_id(image, "id", where)


def coco_captions(content: Record, name: str, images: Mapping[int | str, Record]) -> dict[int | str, list[str]]:
    """The captions of `annotations` by id of the image."""
    captions: dict[int | str, list[str]] = {}
    for where, annotation in listed(content, "annotations", name, "caption"):
        image_id = read_id(annotation, "image_id", where)
        if image_id not in images:
            raise unknown_image_error(image_id, where)
        captions.setdefault(image_id, []).append(read_text(annotation, "caption", where))
    return captions


def unknown_image_error(image_id: int | str, where: str) -> ValueError:
    """The error for a caption without an image."""
    return ValueError(f"{where}: image_id {image_id!r} is not among 'images'. Correct or remove this record.")


def listed(content: Record, field: str, name: str, expected: str) -> Iterator[tuple[str, Record]]:
    """The records of a list in an object, each with its name in messages."""
    for number, record in enumerate(list_of(content, field, name)):
        where = f"{name}, {field}, record {number}"
        yield where, check_record(record, where, expected)


def list_of(content: Record, field: str, name: str) -> list[Any] | JsonArray:
    """A list in an object. Raises `ValueError` if it is missing or empty."""
    records = content.get(field)
    if not isinstance(records, (list, JsonArray)) or not records:
        raise field_error(content, field, name, "a list of records")
    return records


def coco_image_id(path: str) -> int | None:
    """COCO's image id in a file name, or `None` if the name is not COCO's.

    Example:
        >>> coco_image_id("val2014/COCO_val2014_000000391895.jpg"), coco_image_id("images/dog.jpg")
        (391895, None)
    """
    match = _COCO_NAME.fullmatch(os.path.basename(path))
    return None if match is None else int(match[1])


__all__ = [
    "coco_captions",
    "coco_image_id",
    "coco_images",
    "coco_records",
    "list_of",
    "listed",
    "read_coco_image",
    "unknown_image_error",
]
