# SPDX-License-Identifier: BSD-3-Clause
"""Lists of questions with answers: BLIP's `vqa_train.json` and `vg_qa.json`, VizWiz, TextVQA, DAQUAR."""

import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .records import Record, check_record, read_id, read_path, read_text
from .samples import Skipped
from .usable import read_or_skip, read_usable
from .vqa_fields import AnswerLists, ImageRoots, UnreadFields, VqaRecord, equal_weights, image_finder, read_answers


# salesforce/BLIP, data/vqa_dataset.py: the sum of the weights of a question's answers. Those of VQA sum to 1.
VISUAL_GENOME_WEIGHT = 0.2
# The fields of a record. Of `image` and `image_id`, and of `answer` and `answers`, the first one that it has is read.
FIELDS = ("image", "image_id", "question", "question_id", "answer", "answers", "dataset")


def read_question_list(
    records: Iterable[Any], path: Path, roots: ImageRoots, answer_lists: AnswerLists
) -> Iterator[VqaRecord]:
    """Reads a list of questions. Iterates twice if they have no ids."""
    reader = _ListReader(path, roots, answer_lists)
    has_ids = any(isinstance(record, Mapping) and "question_id" in record for record in records)

    def read(record: Any, where: str) -> tuple[Any, dict[str, Any], int | str | None]:
        question = reader.read(record, where)
        return record, question, read_id(record, "question_id", where) if has_ids else None

    are_named = not has_ids and _have_distinct_images(read_or_skip(records, read, str(path)))
    for number, (record, question, own_id) in enumerate(read_usable(records, read, str(path))):
        if not has_ids:
            own_id = _image_name(record) if are_named else number
        yield {**question, "question_id": own_id}
    reader.unread.warn()


class _ListReader:
    def __init__(self, path: Path, roots: ImageRoots, answer_lists: AnswerLists) -> None:
        self.roots = roots
        self.answer_lists = answer_lists
        self.unread = UnreadFields(path, [*FIELDS, "answer.answer", "answers.answer"])
        self.find_in = cache(image_finder)

    def read(self, record: Any, where: str) -> dict[str, Any]:
        """Reads all of a question but its id."""
        self.unread.note(check_record(record, where, "question"))
        dataset = record.get("dataset")
        answers = self._read_answers(record, where)
        return {
            "image": self._read_image(record, where, self.roots.of(dataset, where)),
            "question": read_text(record, "question", where),
            "answers": answers,
            "weights": equal_weights(answers, VISUAL_GENOME_WEIGHT if dataset == "vg" else 1.0),
        }

    def _read_image(self, record: Record, where: str, root: Any) -> str:
        if "image" in record or "image_id" not in record:
            return os.path.join(root, read_path(record, "image", where))
        return self.find_in(root)(str(read_id(record, "image_id", where)))

    def _read_answers(self, record: Record, where: str) -> list[str]:
        field = next((field for field in ("answer", "answers") if field in record), None)
        if field is None:
            return []
        answers = read_answers(record, field, where, self.unread)
        return [", ".join(sorted(set(answers)))] if self.answer_lists == "set" else answers


def _have_distinct_images(questions: Iterable[tuple[Any, dict[str, Any], Any] | Skipped]) -> bool:
    """Whether each image has one question, so that its name identifies it as in VizWiz."""
    hashes = array("q", (hash(_image_name(item[0])) for item in questions if not isinstance(item, Skipped)))
    return len(np.unique(hashes)) == len(hashes)


def _image_name(record: Record) -> str:
    return str(record.get("image", record.get("image_id")))


__all__ = ["FIELDS", "VISUAL_GENOME_WEIGHT", "read_question_list"]
