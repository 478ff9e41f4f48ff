# SPDX-License-Identifier: BSD-3-Clause
"""NoCaps' annotation files, with the domains of its images."""

from pathlib import Path
from typing import Any

from .coco import coco_captions, coco_images
from .image_root import ImageRoot
from .records import CaptionGroup, PathLike, check_record, read_id, read_json, read_path, read_text
from .usable import read_usable


class NoCapsImage(CaptionGroup):
    """An image of NoCaps. `captions` is empty and `domain` is `None` if the file has none."""

    domain: str | None


def load_nocaps(
    path: PathLike, *, image_root: PathLike | None = None, allow_outside: bool = False
) -> list[NoCapsImage]:
    """Reads the images of [NoCaps](https://nocaps.org), with captions and domains if the file has them.

    Args:
        path (`str` or `Path`):
            NoCaps' own `nocaps_val_4500_captions.json` or `nocaps_{val,test}_image_info.json`, or BLIP's
            `nocaps_{val,test}.json`, a list of `{"image": path, "img_id": id}`.
        image_root, allow_outside (*optional*):
            As in [`~blip_hf.data.readers.load_pairs`].
    """
    path = Path(path)
    content = read_json(path)
    items = _read_list(content, str(path)) if isinstance(content, list) else _read_object(content, str(path))
    root = ImageRoot(path.parent if image_root is None else image_root, allow_outside)

    def join(item: NoCapsImage, where: str) -> NoCapsImage:
        return {**item, "image": root.join(item["image"], where)}

    return list(read_usable(items, join, str(path)))


def _read_list(content: list[Any], name: str) -> list[NoCapsImage]:
    items: list[NoCapsImage] = []
    for number, record in enumerate(content):
        where = f"{name}, record {number}"
        check_record(record, where, "img_id")
        path, image_id = read_path(record, "image", where), read_id(record, "img_id", where)
        items.append({"image": path, "captions": [], "image_id": image_id, "domain": None})
    return items


def _read_object(content: Any, name: str) -> list[NoCapsImage]:
    images = coco_images(check_record(content, name, "images"), name)
    captions = coco_captions(content, name, images) if "annotations" in content else {}
    return [
        {
            "image": image["file_name"],
            "captions": captions.get(image_id, []),
            "image_id": image_id,
            "domain": read_text(image, "domain", f"{name}, image {image_id}") if "domain" in image else None,
        }
        for image_id, image in images.items()
    ]


__all__ = ["NoCapsImage", "load_nocaps"]
