# SPDX-License-Identifier: BSD-3-Clause
"""NLVR2: sentences about two images, in its own files and in BLIP's lists."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from .image_root import ImageRoot
from .json_files import JsonRecords
from .record_tables import record_table
from .records import PathLike, Record, check_record, field_error, first_character, read_large_json, read_text
from .usable import read_usable


LABELS = {"true": True, "false": False}
_FEATURES = Features(
    {
        "images": List(Value("string")),
        "sentence": Value("string"),
        "label": Value("bool"),
        "sentence_id": Value("string"),
    }
)


def load_nlvr2(path: PathLike, *, image_root: PathLike | None = None, allow_outside: bool = False) -> Dataset:
    """Reads the sentences of NLVR2 from a JSON list or JSON lines, without opening an image.

    | file                               | its fields                                                             |
    |------------------------------------|------------------------------------------------------------------------|
    | NLVR2's own `dev.json` (JSON lines)| `identifier`, `sentence`, `label`, and `directory` in the training set |
    | BLIP's `nlvr_dev.json`             | `images` (two paths), `sentence`, `label`                              |

    NLVR2's own files do not name the images: those of `dev-850-0-1` are `dev-850-0-img0.png` and `dev-850-0-img1.png`.
    Relative paths start from `image_root`, by default the folder of the file. `allow_outside` and invalid records are as
    in [`~blip_hf.data.readers.load_pairs`].

    Returns:
        `datasets.Dataset`: rows `{"images": [path, path], "sentence", "label": bool, "sentence_id"}` in the order of the file.
        `sentence_id` is NLVR2's identifier without the number of the pair, or the sentence in BLIP's lists.
    """
    path = Path(path)
    root = ImageRoot(path.parent if image_root is None else image_root, allow_outside)
    return record_table(
        partial(_read_file, path, root), [path], _FEATURES, id_field="sentence_id", key=lambda: f"{os.getcwd()} {root}"
    )


def _read_file(path: Path, root: ImageRoot) -> Iterator[dict[str, Any]]:
    content = read_large_json(path, is_lines=first_character(path) == "{")
    if not isinstance(content, JsonRecords) or not content:
        raise ValueError(
            f"{path} contains {'an empty list' if content == [] else f'a {type(content).__name__}'}, expected records with"
            " 'identifier' or 'images', 'sentence' and 'label'."
        )
    return read_usable(content, partial(_read_record, root=root), str(path))


def _read_record(record: Any, where: str, root: ImageRoot) -> dict[str, Any]:
    check_record(record, where, "sentence")
    sentence = read_text(record, "sentence", where)
    if "identifier" in record:
        images, sentence_id = _read_identifier(record, where)
    else:
        images, sentence_id = _read_images(record, where), sentence
    return {
        "images": [root.join(image, where) for image in images],
        "sentence": sentence,
        "label": _read_label(record, where),
        "sentence_id": sentence_id,
    }


def _read_identifier(record: Record, where: str) -> tuple[list[str], str]:
    """Paths of the images and id of the sentence, from `split-set-pair-sentence`."""
    identifier = read_text(record, "identifier", where)
    parts = identifier.split("-")
    if len(parts) != 4:
        raise _value_error(record, "identifier", where, "split-set-pair-sentence, such as 'dev-850-0-1'")
    split, set_id, pair_id, number = parts
    folder = str(record.get("directory", ""))  # the training images are in numbered folders
    images = [os.path.join(folder, f"{split}-{set_id}-{pair_id}-img{side}.png") for side in (0, 1)]
    return images, f"{split}-{set_id}-{number}"


def _read_images(record: Record, where: str) -> list[str]:
    images = record.get("images")
    if not isinstance(images, list) or len(images) != 2 or not all(isinstance(path, str) and path for path in images):
        raise field_error(record, "images", where, "the paths of two images")
    return images


def _read_label(record: Record, where: str) -> bool:
    label = record.get("label")
    if isinstance(label, bool):
        return label
    if not isinstance(label, str) or label.lower() not in LABELS:
        raise _value_error(record, "label", where, "'True' or 'False'")
    return LABELS[label.lower()]


def _value_error(record: Record, field: str, where: str, expected: str) -> ValueError:
    """Like `field_error`, also for text with a wrong value."""
    if not isinstance(record.get(field), str):
        return field_error(record, field, where, expected)
    return ValueError(
        f"{where}: field {field!r} is {record[field]!r}, expected {expected}. Correct or remove this record."
    )


__all__ = ["load_nlvr2"]
