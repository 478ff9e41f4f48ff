# SPDX-License-Identifier: BSD-3-Clause
"""Annotation files as they are published: COCO captions, the Karpathy splits, NoCaps, and the metadata of image folders.

[`~blip_hf.data.readers.pairs.load_pairs`] reads all but NoCaps' lists without captions, which `load_nocaps` does.
"""

import csv
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .records import (
    CaptionGroup,
    Record,
    check_record,
    field_error,
    read_id,
    read_json,
    read_optional_id,
    read_path,
    read_text,
)


SHAPES = 'COCO\'s {"images": [...], "annotations": [...]} or Karpathy\'s {"images": [{"sentences": [...]}]}'


# Names of images in the sets of 2014 and of 2017. No id has more than six digits.
_COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?0{6}(\d{6})\.jpg")


class NoCapsImage(CaptionGroup):
    """An image of NoCaps. `captions` is empty where the file has none, and `domain` is `None` where it does not say."""

    domain: str | None


def standard_records(content: Mapping[str, Any], name: str, split: str) -> list[Record]:
    """Records of a published file in the form that JSON lists have: `image`, a list of captions as `caption`, `image_id`.

    | file                                                            | its fields                                |
    |-----------------------------------------------------------------|-------------------------------------------|
    | COCO's `captions_val2017.json`, `nocaps_val_4500_captions.json` | `images`: `id`, `file_name`;              |
    |                                                                 | `annotations`: `image_id`, `caption`      |
    | Karpathy's `dataset_{coco,flickr30k,flickr8k}.json`             | `images`: `filepath`, `filename`,         |
    |                                                                 | `split`, `cocoid` or `imgid`, `sentences` |

    Args:
        content (`Mapping[str, Any]`):
            The object that the file holds.
        name (`str`):
            Name of the file, for messages.
        split (`str`):
            With Karpathy's files, which split. `"train"` has the images of `restval` too, as everybody trains on them;
            BLIP's own list of COCO does. COCO's files have one split each.

    Returns:
        `list[Record]`: one an image that has captions, in the order of `images`.

    Raises:
        ValueError: If the file is of another shape, a record of it does not fit, or it has no such split.

    Example:
        >>> content = {
        ...     "images": [{"id": 9, "file_name": "9.jpg"}, {"id": 4, "file_name": "4.jpg"}],
        ...     "annotations": [{"image_id": 9, "caption": "a cat"}, {"image_id": 9, "caption": "an animal"}],
        ... }
        >>> standard_records(content, "captions.json", split="train")
        [{'image': '9.jpg', 'caption': ['a cat', 'an animal'], 'image_id': 9}]
    """
    if "images" not in content:
        raise ValueError(
            f"{name} holds an object with {', '.join(map(repr, content)) or 'nothing'}, expected a list of records with"
            f" 'image' and 'caption', or {SHAPES}."
        )
    if "annotations" not in content:
        return _karpathy_records(content, name, split)
    images = _coco_images(content, name)
    captions = _coco_captions(content, name, images)
    return [
        {"image": image["file_name"], "caption": captions[image_id], "image_id": image_id}
        for image_id, image in images.items()
        if image_id in captions
    ]


def coco_image_id(path: str) -> int | None:
    """COCO's id of an image, which the names of its files hold and BLIP's lists for evaluation leave to them.

    Args:
        path (`str`):
            Path of the image.

    Returns:
        `int`, *optional*: the id, or `None` where the name is not of COCO.

    Example:
        >>> coco_image_id("val2014/COCO_val2014_000000391895.jpg"), coco_image_id("images/dog.jpg")
        (391895, None)
    """
    match = _COCO_NAME.fullmatch(os.path.basename(path))
    return None if match is None else int(match[1])


def read_metadata_csv(path: Path) -> list[Record]:
    """Rows of the `metadata.csv` of an image folder, as `datasets` has them: `file_name`, `caption` or `text`, `image_id`.

    Args:
        path (`Path`):
            A CSV file with a head line.

    Returns:
        `list[Record]`: one a row. An `image_id` of digits is a number, an empty one is none.

    Raises:
        ValueError: If a row has more fields than the head line.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [read_metadata_row(row, f"{path}, record {number}") for number, row in enumerate(csv.DictReader(file))]


def read_metadata_row(row: dict[str | None, Any], where: str) -> Record:
    """A row of a `metadata.csv` as [`read_metadata_csv`] gives it.

    Args:
        row (`dict`):
            What `csv.DictReader` makes of it.
        where (`str`):
            File and number, for the message.

    Returns:
        `Record`: the row.

    Raises:
        ValueError: If it has more fields than the head line.
    """
    if None in row:
        raise ValueError(
            f"{where} has {len(row[None])} more fields than the head line. Put captions with commas in double quotes:"
            ' "a dog, running".'
        )
    if "image_id" not in row:
        return row
    image_id = row["image_id"]
    return {**row, "image_id": int(image_id) if image_id and image_id.isdecimal() else image_id or None}


def load_nocaps(
    path: str | os.PathLike[str], *, image_root: str | os.PathLike[str] | None = None
) -> list[NoCapsImage]:
    """Reads the images of [NoCaps](https://nocaps.org), with captions and domains where the file has them.

    Args:
        path (`str` or `Path`):
            NoCaps' own `nocaps_val_4500_captions.json` or `nocaps_{val,test}_image_info.json`, or BLIP's
            `nocaps_{val,test}.json`, a list of `{"image": path, "img_id": id}`.
        image_root (`str` or `Path`, *optional*):
            Folder that image paths start from. Defaults to the folder of the file.

    Returns:
        `list[NoCapsImage]`: `{"image": path, "captions", "image_id", "domain"}`, in the order of the file.

    Raises:
        ValueError: If the file or a record of it does not fit.
    """
    path = Path(path)
    content = read_json(path)
    items = _nocaps_of_list(content, str(path)) if isinstance(content, list) else _nocaps_of_coco(content, str(path))
    root = path.parent if image_root is None else image_root
    return [{**item, "image": os.path.join(root, item["image"])} for item in items]


def _nocaps_of_list(content: list[Any], name: str) -> list[NoCapsImage]:
    items = []
    for number, record in enumerate(content):
        where = f"{name}, record {number}"
        check_record(record, where, "img_id")
        path, image_id = read_path(record, "image", where), read_id(record, "img_id", where)
        items.append({"image": path, "captions": [], "image_id": image_id, "domain": None})
    return items


def _nocaps_of_coco(content: Any, name: str) -> list[NoCapsImage]:
    images = _coco_images(check_record(content, name, "images"), name)
    captions = _coco_captions(content, name, images) if "annotations" in content else {}
    return [
        {
            "image": image["file_name"],
            "captions": captions.get(image_id, []),
            "image_id": image_id,
            "domain": read_text(image, "domain", f"{name}, image {image_id}") if "domain" in image else None,
        }
        for image_id, image in images.items()
    ]


# Fields of COCO's and Karpathy's files


def _listed(content: Record, field: str, name: str, expected: str) -> Iterator[tuple[str, Record]]:
    """Records of a list inside the object, each with its place."""
    records = content.get(field)
    if not isinstance(records, list) or not records:
        raise field_error(content, field, name, "a list of records")
    for number, record in enumerate(records):
        where = f"{name}, {field}, record {number}"
        yield where, check_record(record, where, expected)


def _coco_images(content: Record, name: str) -> dict[int | str, Record]:
    images = {}
    for where, image in _listed(content, "images", name, "file_name"):
        read_path(image, "file_name", where)
        images[read_id(image, "id", where)] = image
    return images


def _coco_captions(content: Record, name: str, images: Mapping[int | str, Record]) -> dict[int | str, list[str]]:
    captions: dict[int | str, list[str]] = {}
    for where, annotation in _listed(content, "annotations", name, "caption"):
        image_id = read_id(annotation, "image_id", where)
        if image_id not in images:
            raise ValueError(
                f"{where}: image_id {image_id!r} is not among 'images'. Correct or leave out this record."
            )
        captions.setdefault(image_id, []).append(read_text(annotation, "caption", where))
    return captions


def _karpathy_records(content: Record, name: str, split: str) -> list[Record]:
    wanted = ("train", "restval") if split == "train" else (split,)
    records, found = [], {}
    for where, image in _listed(content, "images", name, "sentences"):
        own_split = read_text(image, "split", where)
        found[own_split] = True
        if own_split in wanted:
            records.append(_karpathy_record(image, where))
    if not records:
        raise ValueError(f"{name} has no split {split!r}; pass split= one of {', '.join(map(repr, found))}.")
    return records


def _karpathy_record(image: Record, where: str) -> Record:
    folder = read_text(image, "filepath", where) if "filepath" in image else ""
    sentences = [read_text(sentence, "raw", place) for place, sentence in _listed(image, "sentences", where, "raw")]
    return {
        "image": os.path.join(folder, read_path(image, "filename", where)),
        "caption": sentences,
        "image_id": read_optional_id(image, "cocoid" if "cocoid" in image else "imgid", where),
    }


__all__ = [
    "NoCapsImage",
    "coco_image_id",
    "load_nocaps",
    "read_metadata_csv",
    "read_metadata_row",
    "standard_records",
]
