# SPDX-License-Identifier: BSD-3-Clause
"""Questions with answers: BLIP's lists, VQA v2, Visual Genome and drawn scenes.

A record is `{"image", "question", "question_id", "answers", "weights"}`. `answers` has one entry for each annotator,
with its weight in the training loss.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from datasets import Dataset

from ..scenes import Scenes, SceneVqa
from .records import PathLike, Record, check_record, field_error, read_id, read_json, read_path, read_text
from .scenes import is_scenes, parse_scenes


AnswerLists = Literal["votes", "set"]

# salesforce/BLIP, data/vqa_dataset.py: the sum of the weights of a question's answers. Those of VQA sum to 1.
VISUAL_GENOME_WEIGHT = 0.2
SHAPES = (
    'a list of {"image", "question", "question_id", "answer"}, Visual Genome\'s list of {"qas": [...]}, or VQA\'s'
    ' {"questions": [...]}'
)


class VqaRecord(TypedDict):
    """A question about an image. `answers` is empty if the source has none, as in test sets."""

    image: Any
    question: str
    question_id: int | str
    answers: list[str]
    weights: list[float]


def load_vqa(
    source: PathLike | Sequence[PathLike] | Scenes,
    *,
    annotations: PathLike | None = None,
    image_root: PathLike | Mapping[str, PathLike] | None = None,
    answer_lists: AnswerLists = "votes",
) -> Sequence[VqaRecord]:
    """Reads questions and their answers, without opening an image.

    | source                          | its fields                                                                |
    |---------------------------------|---------------------------------------------------------------------------|
    | lists, such as BLIP's           | `image`, `question`, `question_id`, `answer`: a text, a list of texts, or |
    | `vqa_train.json`, `vg_qa.json`  | none; optional `dataset`: `"vqa"` or `"vg"`                               |
    | VQA v2                          | `questions`: `image_id`, `question`, `question_id`, and `data_subtype`;   |
    |                                 | in `annotations`, `annotations`: `question_id`, `answers`: `answer`       |
    | Visual Genome's                 | `id`, `qas`: `qa_id`, `question`, `answer`                                |
    | `question_answers.json`         |                                                                           |
    | [`Scenes`], `scenes:NUMBER`     | their questions, with ids from 0                                          |

    Weights are those of BLIP's code: `1 / n` for each of the `n` answers to a question, and `0.2 / n` for Visual
    Genome.

    Args:
        source (`str`, `Path`, a list of them, or [`Scenes`]):
            One or several files, or drawn scenes.
        annotations (`str` or `Path`, *optional*):
            VQA v2's answer file. Without it, its questions have no answers.
        image_root (`str`, `Path` or a mapping of them, *optional*):
            Folder of relative image paths, or one for each `dataset`: `{"vqa": ..., "vg": ...}`. Defaults to the
            folder of the file. VQA v2 needs a folder with `COCO_val2014_000000000042.jpg`, ..., Visual Genome one with
            `42.jpg`, ..., directly or in `VG_100K` and `VG_100K_2`.
        answer_lists (`str`, *optional*, defaults to `"votes"`):
            Meaning of a list of answers: `"votes"` of several annotators, as in VQA, or a `"set"` of parts of one
            answer, as in DAQUAR, to join by `", "` in alphabetical order.

    Returns:
        Sequence of [`VqaRecord`]: in the order of the source; a `datasets.Dataset` for files.
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
    questions = [
        question
        for path in paths
        for question in _read_file(path, annotations, _Roots(path, image_root), answer_lists)
    ]
    columns = {field: [question[field] for question in questions] for field in VqaRecord.__annotations__}
    if not all(isinstance(question_id, int) for question_id in columns["question_id"]):
        columns["question_id"] = list(map(str, columns["question_id"]))
    return Dataset.from_dict(columns)


def most_common_answers(questions: Sequence[VqaRecord], num_answers: int | None = None) -> list[str]:
    """The `num_answers` most common answers (default: all), most common first; ties in the order of the questions.

    Example:
        >>> most_common_answers([{"answers": ["2", "red"]}, {"answers": ["red"]}])
        ['red', '2']
    """
    if isinstance(questions, Dataset):
        answer_lists = questions["answers"][:]
    elif isinstance(questions, SceneVqa):
        answer_lists = questions.answers()
    else:
        answer_lists = [question["answers"] for question in questions]
    counts = Counter(answer for answers in answer_lists for answer in answers)
    return [answer for answer, _ in counts.most_common(num_answers)]


class _Roots:
    """The image folders of a file."""

    def __init__(self, path: Path, image_root: PathLike | Mapping[str, PathLike] | None) -> None:
        self.default = path.parent if image_root is None else image_root

    def of(self, dataset: str | None, where: str) -> PathLike:
        """The folder of a data set."""
        if not isinstance(self.default, Mapping):
            return self.default
        if dataset not in self.default:
            raise ValueError(
                f"{where}: its data set is {dataset!r}, and image_root has {', '.join(map(repr, self.default))}. Add its"
                " folder."
            )
        return self.default[dataset]


def _read_file(
    path: Path, annotations: PathLike | None, roots: _Roots, answer_lists: AnswerLists
) -> Iterable[VqaRecord]:
    content = read_json(path)
    is_official = isinstance(content, Mapping) and isinstance(content.get("questions"), list)
    if annotations is not None and not is_official:
        raise ValueError(
            f'annotations require VQA\'s {{"questions": [...]}}, but {path} is another file. Remove annotations.'
        )
    if is_official:
        return _read_official(content, path, annotations, roots)
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path} contains {_kind(content)}, expected {SHAPES}.")
    if isinstance(content[0], Mapping) and "qas" in content[0]:
        return _read_visual_genome(content, path, roots)
    return [_read_record(record, f"{path}, record {i}", roots, answer_lists) for i, record in enumerate(content)]


def _kind(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"an object with {', '.join(map(str, content)) or 'nothing'}"
    return "an empty list" if content == [] else f"a {type(content).__name__}"


def _weights(answers: Sequence[str], total: float = 1.0) -> list[float]:
    """Equal weights that sum to `total`."""
    return [total / len(answers) for _ in answers]


# BLIP's lists


def _read_record(record: Any, where: str, roots: _Roots, answer_lists: AnswerLists) -> VqaRecord:
    check_record(record, where, "question")
    dataset = record.get("dataset")
    answers = _read_answer(record, where, answer_lists)
    return {
        "image": os.path.join(roots.of(dataset, where), read_path(record, "image", where)),
        "question": read_text(record, "question", where),
        "question_id": read_id(record, "question_id", where),
        "answers": answers,
        "weights": _weights(answers, VISUAL_GENOME_WEIGHT if dataset == "vg" else 1.0),
    }


def _read_answer(record: Record, where: str, answer_lists: AnswerLists) -> list[str]:
    if "answer" not in record:
        return []
    answer = record["answer"]
    answers = [answer] if isinstance(answer, str) else answer
    if not isinstance(answers, list) or not answers or not all(isinstance(item, str) for item in answers):
        raise field_error(record, "answer", where, "str or list of str")
    if answer_lists == "set":
        answers = [", ".join(sorted(set(answers)))]
    return answers


# VQA v2


def _read_official(
    content: Mapping[str, Any], path: Path, annotations: PathLike | None, roots: _Roots
) -> Iterator[VqaRecord]:
    answers_of = None if annotations is None else _read_annotations(Path(annotations))
    # Both test sets use the images of test2015.
    subset = read_text(content, "data_subtype", str(path)).replace("-dev", "")
    for number, record in enumerate(content["questions"]):
        where = f"{path}, question {number}"
        check_record(record, where, "question")
        question_id = read_id(record, "question_id", where)
        if answers_of is not None and question_id not in answers_of:
            raise ValueError(
                f"{where}: {annotations} has no answers to question_id {question_id}. Pass the file of its split."
            )
        answers = [] if answers_of is None else answers_of[question_id]
        name = f"COCO_{subset}_{int(read_id(record, 'image_id', where)):012d}.jpg"
        yield {
            "image": os.path.join(roots.of("vqa", where), name),
            "question": read_text(record, "question", where),
            "question_id": question_id,
            "answers": answers,
            "weights": _weights(answers),
        }


def _read_annotations(path: Path) -> dict[int | str, list[str]]:
    content = read_json(path)
    if not isinstance(content, Mapping) or not isinstance(content.get("annotations"), list):
        raise ValueError(f'{path} contains {_kind(content)}, expected VQA\'s {{"annotations": [...]}}.')
    answers_of = {}
    for number, record in enumerate(content["annotations"]):
        where = f"{path}, annotation {number}"
        check_record(record, where, "answers")
        answers = record.get("answers")
        if not isinstance(answers, list) or not answers:
            raise field_error(record, "answers", where, 'a list of {"answer": str}')
        answers_of[read_id(record, "question_id", where)] = [
            read_text(check_record(answer, f"{where}, answer {i}", "answer"), "answer", f"{where}, answer {i}")
            for i, answer in enumerate(answers)
        ]
    return answers_of


# Visual Genome


def _read_visual_genome(content: list[Any], path: Path, roots: _Roots) -> Iterator[VqaRecord]:
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
                "weights": _weights(answers, VISUAL_GENOME_WEIGHT),
            }


def _image_finder(root: Path) -> Callable[[str], str]:
    """Finds images by name in the two folders of the download."""
    folder_of = {name: folder for folder in sorted(root.glob("VG_100K*")) for name in os.listdir(folder)}
    return lambda name: os.path.join(folder_of.get(name, root), name)


__all__ = ["AnswerLists", "VqaRecord", "load_vqa", "most_common_answers"]
