# SPDX-License-Identifier: BSD-3-Clause
"""Karpathy's `dataset_{coco,flickr30k,flickr8k}.json`: `images` with `filename`, `split` and `sentences`."""

import os
from collections.abc import Iterator

from .coco import listed
from .records import Record, read_optional_id, read_path, read_text


def karpathy_records(content: Record, name: str, split: str) -> Iterator[Record]:
    """One record `{"image", "caption", "image_id"}` for each image of a split.

    As in BLIP's own list of COCO, the split `"train"` includes `restval`.
    """
    wanted = ("train", "restval") if split == "train" else (split,)
    found: dict[str, bool] = {}
    for where, image in listed(content, "images", name, "sentences"):
        own_split = read_text(image, "split", where)
        found[own_split] = True
        if own_split in wanted:
            yield _read_image(image, where)
    if not any(own_split in wanted for own_split in found):
        raise ValueError(f"{name} has no split {split!r}; pass split= one of {', '.join(map(repr, found))}.")


def _read_image(image: Record, where: str) -> Record:
    folder = read_text(image, "filepath", where) if "filepath" in image else ""
    sentences = [read_text(sentence, "raw", place) for place, sentence in listed(image, "sentences", where, "raw")]
    return {
        "image": os.path.join(folder, read_path(image, "filename", where)),
        "caption": sentences,
        "image_id": read_optional_id(image, "cocoid" if "cocoid" in image else "imgid", where),
    }


__all__ = ["karpathy_records"]
