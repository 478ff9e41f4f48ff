# SPDX-License-Identifier: BSD-3-Clause
"""VQA's own files: questions on COCO images and on abstract scenes, with answers in a file of their own."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .json_files import JsonArray
from .places import IdIndex, key_of, read_place, store_places
from .records import PathLike, check_record, field_error, read_id, read_large_json, read_text
from .vqa_fields import ImageRoots, UnreadFields, VqaRecord, equal_weights, image_finder, kind_of, read_answers


# The published fields. BLIP uses only some of them.
QUESTION_FIELDS = ("image_id", "question", "question_id", "multiple_choices")
ANNOTATION_FIELDS = ("question_id", "image_id", "question_type", "answer_type", "multiple_choice_answer", "answers")
ANSWER_FIELDS = ("answers.answer", "answers.answer_confidence", "answers.answer_id", "answers.raw_answer")

# Returns the answers to a question id, or `None` if no question has it.
AnswerFinder = Callable[[int | str], list[str] | None]


def is_official(content: Any) -> bool:
    """Whether the content of a file is a set of questions in VQA's format."""
    return isinstance(content, Mapping) and isinstance(content.get("questions"), (list, JsonArray))


def read_official(
    content: Mapping[str, Any], path: Path, annotations: PathLike | None, roots: ImageRoots
) -> Iterator[VqaRecord]:
    """Reads a file of questions, with the answers of `annotations`."""
    if annotations is None:
        yield from _read_questions(content, path, roots, lambda question_id: [])
        return
    with _open_annotations(Path(annotations)) as find_answers:
        yield from _read_questions(content, path, roots, find_answers, annotations)


def _read_questions(
    content: Mapping[str, Any],
    path: Path,
    roots: ImageRoots,
    find_answers: AnswerFinder,
    annotations: PathLike | None = None,
) -> Iterator[VqaRecord]:
    find = _image_finder(content, path, roots.of("vqa", str(path)))
    unread = UnreadFields(path, QUESTION_FIELDS)
    for number, record in enumerate(content["questions"]):
        where = f"{path}, question {number}"
        unread.note(check_record(record, where, "question"))
        question_id = read_id(record, "question_id", where)
        answers = find_answers(question_id)
        if answers is None:
            raise ValueError(
                f"{where}: {annotations} has no answers to question_id {question_id}. Pass the file of its split."
            )
        yield {
            "image": find(str(read_id(record, "image_id", where))),
            "question": read_text(record, "question", where),
            "question_id": question_id,
            "answers": answers,
            "weights": equal_weights(answers),
        }
    unread.warn()


def _image_finder(content: Mapping[str, Any], path: Path, root: PathLike) -> Callable[[str], str]:
    """Maps image ids to paths: a number to the published file name of its data set, a text to the file of that name."""
    find_by_name = image_finder(root)
    if "data_subtype" not in content:
        return find_by_name
    # Both test sets use the images of test2015.
    subset = read_text(content, "data_subtype", str(path)).replace("-dev", "")
    data_type = content.get("data_type", "mscoco")  # or abstract_v002
    prefix, suffix = ("COCO", "jpg") if data_type == "mscoco" else (data_type, "png")

    def find(image_id: str) -> str:
        if not image_id.isdecimal():
            return find_by_name(image_id)
        return os.path.join(root, f"{prefix}_{subset}_{int(image_id):012d}.{suffix}")

    return find


@contextmanager
def _open_annotations(path: Path) -> Iterator[AnswerFinder]:
    """Checks a file of answers, and finds those to a question."""
    content = read_large_json(path)
    if not isinstance(content, Mapping) or not isinstance(content.get("annotations"), (list, JsonArray)):
        raise ValueError(f'{path} contains {kind_of(content)}, expected VQA\'s {{"annotations": [...]}}.')
    unread = UnreadFields(path, [*ANNOTATION_FIELDS, *ANSWER_FIELDS])
    records = content["annotations"]

    def read(record: Any, number: int) -> tuple[int | str, list[str]]:
        return _read_annotation(record, f"{path}, annotation {number}", unread)

    if not isinstance(records, JsonArray):
        answers_of = dict(read(record, number) for number, record in enumerate(records))
        unread.warn()
        yield answers_of.get
        return
    places = store_places(
        (key_of(read(record, number)[0]), start, stop - start)
        for number, (start, stop, record) in enumerate(records.located())
    )
    unread.warn()
    index = IdIndex(places["key"])
    with path.open("rb") as file:

        def find(question_id: int | str) -> list[str] | None:
            row = index.row_of(key_of(question_id))
            return None if row is None else read(read_place(file, places[index.newest[row]]), row)[1]

        yield find


def _read_annotation(record: Any, where: str, unread: UnreadFields) -> tuple[int | str, list[str]]:
    """The id of a question, and its answers."""
    unread.note(check_record(record, where, "answers"))
    if not record.get("answers"):
        raise field_error(record, "answers", where, 'a list of {"answer": str}')
    answers = read_answers(record, "answers", where, unread)
    return read_id(record, "question_id", where), answers


__all__ = ["is_official", "read_official"]
