# SPDX-License-Identifier: BSD-3-Clause
"""Questions with answers: lists as of BLIP, VizWiz or TextVQA, VQA's own files, Visual Genome and drawn scenes.

A record is `{"image", "question", "question_id", "answers", "weights"}`. `answers` has one entry for each annotator,
with its weight in the training loss.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from datasets import Dataset, Features, List, Value

from ..scenes import Scenes, SceneVqa
from .json_files import JsonRecords
from .record_tables import record_table
from .records import PathLike, read_large_json
from .scenes import is_scenes, parse_scenes
from .usable import read_usable
from .visual_genome import read_visual_genome
from .vqa_fields import AnswerLists, ImageRoots, VqaRecord, kind_of
from .vqa_lists import read_question_list
from .vqa_official import is_official, read_official


SHAPES = (
    'a list of {"image", "question", "answer"} (or {"data": [...]} of it), Visual Genome\'s list of {"qas": [...]}, or'
    ' VQA\'s {"questions": [...]}'
)

_FEATURES = Features(
    {
        "image": Value("string"),
        "question": Value("string"),
        "question_id": Value("string"),
        "answers": List(Value("string")),
        "weights": List(Value("float64")),
    }
)


def load_vqa(
    source: PathLike | Sequence[PathLike] | Scenes,
    *,
    annotations: PathLike | None = None,
    image_root: PathLike | Mapping[str, PathLike] | None = None,
    allow_outside: bool = False,
    answer_lists: AnswerLists = "votes",
) -> Sequence[VqaRecord]:
    """Reads questions and their answers, without opening an image.

    | source                          | its fields                                                                |
    |---------------------------------|---------------------------------------------------------------------------|
    | lists, or `{"data": [...]}`:    | `image` (path) or `image_id` (name without suffix), `question`;           |
    | BLIP's `vqa_train.json`,        | `answer` or `answers`: a text, a list of texts or of `{"answer": ...}`,   |
    | `vg_qa.json`; VizWiz, TextVQA   | or none; optional `question_id`, `dataset`: `"vqa"` or `"vg"`             |
    | VQA v1, v2 and abstract scenes  | `questions`: `image_id`, `question`, `question_id`, and `data_subtype`;   |
    |                                 | in `annotations`, `annotations`: `question_id`, `answers`: `answer`       |
    | Visual Genome's                 | `id`, `qas`: `qa_id`, `question`, `answer`                                |
    | `question_answers.json`         |                                                                           |
    | [`Scenes`], `scenes:NUMBER`     | their questions, with ids from 0                                          |

    Other fields, such as VizWiz's `answer_confidence`, are named in one warning for each file. Questions without a
    `question_id` are named after their images, as VizWiz does, or numbered if an image has several.

    Weights are those of BLIP's code: `1 / n` for each of the `n` answers to a question, and `0.2 / n` for Visual
    Genome.

    Args:
        source (`str`, `Path`, a list of them, or [`Scenes`]):
            One or several files, or drawn scenes.
        annotations (`str` or `Path`, *optional*):
            VQA's answer file. Without it, its questions have no answers.
        image_root (`str`, `Path` or a mapping of them, *optional*):
            Folder of relative image paths, or one for each `dataset`: `{"vqa": ..., "vg": ...}`. Defaults to the
            folder of the file. VQA v2 needs a folder with `COCO_val2014_000000000042.jpg`, ..., abstract scenes one
            with `abstract_v002_val2015_000000000042.png`, ..., and Visual Genome one with `42.jpg`, ..., directly or in
            `VG_100K` and `VG_100K_2`.
        allow_outside (`bool`, *optional*, defaults to `False`):
            As in [`~blip_hf.data.readers.load_pairs`].
        answer_lists (`str`, *optional*, defaults to `"votes"`):
            Meaning of a list of answers: `"votes"` of several annotators, as in VQA, or a `"set"` of parts of one
            answer, as in DAQUAR, to join by `", "` in alphabetical order.

    Returns:
        Sequence of [`VqaRecord`]: in the order of the source; a `datasets.Dataset` for files.

    Raises:
        ValueError: If a file does not have one of these forms, or none of its records is usable. Others are skipped with a
            warning; in the files of VQA and Visual Genome, only for their images and texts.
    """
    if is_scenes(source):
        source = parse_scenes(source)
    if isinstance(source, Scenes):
        return SceneVqa(source)
    if answer_lists not in ("votes", "set"):
        raise ValueError(f"answer_lists={answer_lists!r} is unknown; pass 'votes' or 'set'.")
    paths = [Path(source)] if isinstance(source, (str, os.PathLike)) else [Path(path) for path in source]
    if not paths:
        raise ValueError(f"The list of files is empty; pass at least one file: {SHAPES}.")
    roots = {path: ImageRoots(path, image_root, allow_outside) for path in paths}

    def read() -> Iterator[VqaRecord]:
        for path in paths:
            yield from _usable_questions(path, annotations, roots[path], answer_lists)

    files = paths if annotations is None else [*paths, Path(annotations)]

    def key() -> str:
        return f"{annotations} {answer_lists} {[root.state() for root in roots.values()]}"

    return record_table(read, files, _FEATURES, id_field="question_id", key=key)


def has_answers(questions: Sequence[VqaRecord]) -> bool:
    """Whether at least one question has an answer. Opens no image."""
    return any(_answer_lists(questions))


def most_common_answers(questions: Sequence[VqaRecord], num_answers: int | None = None) -> list[str]:
    """The `num_answers` most common answers (default: all), most common first; ties in the order of the questions.

    Example:
        >>> most_common_answers([{"answers": ["2", "red"]}, {"answers": ["red"]}])
        ['red', '2']
    """
    counts = Counter(answer for answers in _answer_lists(questions) for answer in answers)
    return [answer for answer, _ in counts.most_common(num_answers)]


def _answer_lists(questions: Sequence[VqaRecord]) -> Iterable[Sequence[str]]:
    if isinstance(questions, Dataset):
        batches = questions.select_columns("answers").iter(1000)
        return (answers for batch in batches for answers in batch["answers"])
    if isinstance(questions, SceneVqa):
        return questions.answers()
    return (question["answers"] for question in questions)


def _usable_questions(
    path: Path, annotations: PathLike | None, roots: ImageRoots, answer_lists: AnswerLists
) -> Iterator[VqaRecord]:
    def check(question: VqaRecord, where: str) -> VqaRecord:
        roots.check(question["image"], where)
        return question

    return read_usable(_read_file(path, annotations, roots, answer_lists), check, str(path))


def _read_file(
    path: Path, annotations: PathLike | None, roots: ImageRoots, answer_lists: AnswerLists
) -> Iterable[VqaRecord]:
    content = read_large_json(path)
    if annotations is not None and not is_official(content):
        raise ValueError(
            f'annotations require VQA\'s {{"questions": [...]}}, but {path} is another file. Remove annotations.'
        )
    if is_official(content):
        return read_official(content, path, annotations, roots)
    records = content.get("data") if isinstance(content, Mapping) else content  # TextVQA has {"data": [...]}
    if not isinstance(records, JsonRecords) or not records:
        raise ValueError(f"{path} contains {kind_of(content)}, expected {SHAPES}.")
    first = next(iter(records))
    if isinstance(first, Mapping) and "qas" in first:
        return read_visual_genome(records, path, roots)
    return read_question_list(records, path, roots, answer_lists)


__all__ = ["AnswerLists", "VqaRecord", "has_answers", "load_vqa", "most_common_answers"]
