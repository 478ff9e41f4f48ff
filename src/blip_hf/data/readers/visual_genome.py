# SPDX-License-Identifier: BSD-3-Clause
"""Visual Genome's `question_answers.json`, with images in its two folders."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .records import check_record, field_error, read_id, read_text
from .vqa_fields import ImageRoots, VqaRecord, equal_weights, visual_genome_folders
from .vqa_lists import VISUAL_GENOME_WEIGHT


def read_visual_genome(content: Iterable[Any], path: Path, roots: ImageRoots) -> Iterator[VqaRecord]:
    """Reads the questions of all images."""
    find = _image_finder(Path(roots.of("vg", str(path))))
    for number, record in enumerate(content):
        where = f"{path}, record {number}"
        check_record(record, where, "qas")
        pairs = record.get("qas")
        if not isinstance(pairs, list):
            raise field_error(record, "qas", where, "a list of questions")
        image = find(f"{read_id(record, 'id', where)}.jpg")
        for i, pair in enumerate(pairs):
            which = f"{where}, qas {i}"
            check_record(pair, which, "question")
            answers = [read_text(pair, "answer", which)]
            yield {
                "image": image,
                "question": read_text(pair, "question", which),
                "question_id": read_id(pair, "qa_id", which),
                "answers": answers,
                "weights": equal_weights(answers, VISUAL_GENOME_WEIGHT),
            }


def _image_finder(root: Path) -> Callable[[str], str]:
    """Finds images by name in the two folders of the download."""
    folder_of = {name: folder for folder in visual_genome_folders(root) for name in os.listdir(folder)}
    return lambda name: os.path.join(folder_of.get(name, root), name)


__all__ = ["read_visual_genome"]
