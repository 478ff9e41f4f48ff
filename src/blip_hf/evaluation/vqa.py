# SPDX-License-Identifier: BSD-3-Clause
"""Question answering as the paper evaluates it (section 5.4): answers written or chosen, and VQA's accuracy of them."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.readers.vqa import VqaRecord
from ..data.vqa import MAX_ANSWER_LENGTH, BlipVqaCollator, VqaDataset
from ..files import write_json
from ..modeling.vqa import BlipForQuestionAnswering
from ..processing_blip import BlipProcessor
from .features import evaluating


ARTICLES = {"a", "an", "the"}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
PUNCTUATION = ';/[]"{}()=+\\_->@<`,?!'
# The contractions that VQA's evaluation knows, by ending. It leaves out those that are words of their own without the
# apostrophe, such as its, well and were.
_CONTRACTED = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "n't've": "could had might should would",
    "'ve": "could might must not should they we what where who would you",
    "'d": "he how it somebody someone something there they where who you",
    "'d've": "he it she somebody someone something there they we who you y'all",
    "'ll": "how it somebody someone something they what who why you y'all",
    "'re": "there they what why you",
    "'s": "he how somebody someone that there what when where who why",
    "'all": "y",
    "'am": "ma",
    "'clock": "o",
}


# BERT's tokens do not say where a space was: it is put around marks that seldom have any.
_SPLIT_MARK = re.compile(r"(?<=\w) ' (?=\w)|(?<=\d) [.,:] (?=\d)")


def _misspelt() -> dict[str, str]:
    """Contractions by their spellings that lack an apostrophe."""
    full = [stem + ending for ending, stems in _CONTRACTED.items() for stem in stems.split()]
    full.append("'twas")
    return {word[: mark.start()] + word[mark.end() :]: word for word in full for mark in re.finditer("'", word)}


CONTRACTIONS = _misspelt()


def normalize_answer(answer: str) -> str:
    """An answer as VQA's evaluation compares it: without case, articles, punctuation, and with digits for numbers.

    The official evaluation does so to predictions and, articles and numbers aside, to the answers of people, which in VQA
    have neither. Here both are treated alike.

    - Of the marks in `PUNCTUATION`, one that touches a space anywhere in the answer is deleted, and else becomes a space;
      in an answer with a number such as 1,000 all are deleted. A full stop goes unless a digit follows.
    - Numbers up to ten become digits, articles go, and contractions get their apostrophe back.

    Args:
        answer (`str`):
            The answer.

    Returns:
        `str`: what to compare.

    Example:
        >>> normalize_answer("The T-shirt."), normalize_answer("Two, dont know"), normalize_answer("1,000")
        ('t shirt', "2 don't know", '1000')
    """
    text = " ".join(answer.split())
    has_long_number = re.search(r"\d,\d", text) is not None
    marks = {mark: "" if has_long_number or f"{mark} " in text or f" {mark}" in text else " " for mark in PUNCTUATION}
    text = re.sub(r"\.(?!\d)", "", text.translate(str.maketrans(marks)))
    words = [DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """How far people agree with an answer: the mean of `min(matches / 3, 1)` over the lists that leave one person out.

    Args:
        prediction (`str`):
            The answer to be judged.
        answers (sequence of `str`):
            Answers of people, ten in VQA. A single one leaves nobody to agree with, and is right or wrong as a whole.

    Returns:
        `float`: in [0, 1].

    Raises:
        ValueError: If there are no answers.

    Example:
        >>> vqa_accuracy("A dog", ["dog"] * 2 + ["cat"] * 8)  # (2 * 1/3 + 8 * 2/3) / 10
        0.6
    """
    if not answers:
        raise ValueError("There are no answers to compare with; leave out the question.")
    prediction = normalize_answer(prediction)
    num_answers = len(answers)
    num_matches = sum(normalize_answer(answer) == prediction for answer in answers)
    if num_answers == 1:
        return float(num_matches)
    # Leaving out one of those who match leaves a match less.
    matching = num_matches * min((num_matches - 1) / 3, 1)
    others = (num_answers - num_matches) * min(num_matches / 3, 1)
    return (matching + others) / num_answers


@dataclass(frozen=True)
class VqaResult:
    """Answers of a model, and how right they are.

    Args:
        accuracy (`float`, *optional*):
            Mean of [`vqa_accuracy`] over the questions that have answers; `None` where none has, as in test sets.
        predictions (`dict[int | str, str]`):
            By id of the question, its answer.
        num_scored (`int`):
            Questions that have answers.
        num_skipped (`int`):
            Questions that were left out, as their images could not be read.
    """

    accuracy: float | None
    predictions: dict[int | str, str] = field(repr=False)
    num_scored: int
    num_skipped: int


def evaluate_vqa(
    model: BlipForQuestionAnswering,
    processor: BlipProcessor,
    questions: Sequence[VqaRecord],
    *,
    answer_list: Sequence[str] | None = None,
    num_candidates: int = 128,
    num_beams: int = 3,
    max_length: int = 10,
    min_length: int = 1,
    batch_size: int = 8,
    normalize_questions: bool = True,
    num_workers: int = 0,
    show_progress: bool = False,
) -> VqaResult:
    """Answers questions, by choosing from a list or else by writing, and compares with the answers of people.

    The defaults are those of salesforce/BLIP, `models/blip_vqa.py` and `configs/vqa.yaml`.

    Args:
        model (`BlipForQuestionAnswering`):
            The model; its mode, device and dtype are left as they are.
        processor (`BlipProcessor`):
            The processor it was trained with.
        questions (sequence of [`~blip_hf.data.readers.vqa.VqaRecord`]):
            What [`~blip_hf.data.readers.load_vqa`] returns, or a list.
        answer_list (sequence of `str`, *optional*):
            Answers to choose from, such as those of VQA's `answer_list.json` or of
            [`~blip_hf.data.readers.vqa.most_common_answers`]. Without it answers are written.
        num_candidates (`int`, *optional*, defaults to 128):
            Answers of the list that are scored as a whole, for each question.
        num_beams (`int`, *optional*, defaults to 3):
            Beams of writing; 1 is greedy.
        max_length (`int`, *optional*, defaults to 10):
            Most tokens of a written answer, `[DEC]` and `[SEP]` included.
        min_length (`int`, *optional*, defaults to 1):
            Least tokens, counted likewise.
        batch_size (`int`, *optional*, defaults to 8):
            Questions a batch. Choosing takes 4 bytes for each question, candidate, token and word of the vocabulary.
        normalize_questions (`bool`, *optional*, defaults to `True`):
            Whether questions go through [`~blip_hf.data.text.pre_question`], as in training.
        num_workers (`int`, *optional*, defaults to 0):
            Processes that read images.
        show_progress (`bool`, *optional*, defaults to `False`):
            Whether to show a bar.

    Returns:
        `VqaResult`: accuracy and answers. A question whose image cannot be read is left out of both, with a warning.

    Raises:
        ValueError: If there are no questions or none can be used, two have the same id, or as of `check_choice`.
    """
    if answer_list is not None:
        check_choice(answer_list, num_candidates)
    dataset = VqaDataset(questions, normalize_questions=normalize_questions)
    collate = _EvaluationCollator(dataset, BlipVqaCollator(processor))
    batches = DataLoader(range(len(dataset)), batch_size=batch_size, num_workers=num_workers, collate_fn=collate)
    if answer_list is None:
        settings = {"num_beams": num_beams, "max_length": max_length, "min_length": min_length}
        answer = partial(_write, model=model, processor=processor, **settings)
    else:
        rows = _tokenize(processor, answer_list, model.device)
        answer = partial(_choose, model=model, answer_list=answer_list, rows=rows, num_candidates=num_candidates)
    with evaluating(model):
        predictions, accuracies = _answer_all(
            answer, tqdm(batches, desc="Answering", disable=not show_progress), model
        )
    if not predictions:
        raise ValueError(
            f"None of {len(dataset)} questions can be used. Check that image paths start from the right folder"
            " (`image_root` of `load_vqa`)."
        )
    accuracy = sum(accuracies) / len(accuracies) if accuracies else None
    return VqaResult(accuracy, predictions, num_scored=len(accuracies), num_skipped=dataset.num_skipped)


def check_choice(answer_list: Sequence[str], num_candidates: int) -> None:
    """Refuses at once what answers cannot be chosen from.

    Args:
        answer_list (sequence of `str`):
            As of `evaluate_vqa`.
        num_candidates (`int`):
            As of `evaluate_vqa`.

    Raises:
        ValueError: If the list is empty or holds anything but text, or `num_candidates` is below one.
    """
    is_list = isinstance(answer_list, Sequence) and not isinstance(answer_list, str)
    if not is_list or not all(isinstance(answer, str) for answer in answer_list):
        raise ValueError("answer_list is no list of texts; pass answers to choose from, each a str.")
    if not answer_list:
        raise ValueError("answer_list is empty; pass answers to choose from, or None to write them.")
    if num_candidates < 1:
        raise ValueError(f"num_candidates={num_candidates} leaves nothing to choose from; pass 1 or more.")


def write_vqa_results(predictions: Mapping[int | str, str], path: str | os.PathLike[str]) -> None:
    """Writes answers as VQA's server takes them: `[{"question_id": ..., "answer": ...}]`.

    The file appears under its name only when it is complete.

    Args:
        predictions (mapping of id to `str`):
            The answer to each question.
        path (`str` or `Path`):
            The file.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_vqa_results({42: "a dog"}, Path(folder, "results.json"))
        ...     Path(folder, "results.json").read_text()
        '[{"question_id": 42, "answer": "a dog"}]'
    """
    write_json([{"question_id": question_id, "answer": answer} for question_id, answer in predictions.items()], path)


class _EvaluationCollator:
    """Usable questions at the given indices, without their images, and the model's inputs for them."""

    def __init__(self, dataset: VqaDataset, collator: BlipVqaCollator) -> None:
        self.dataset = dataset
        self.collator = collator

    def __call__(self, indices: Sequence[int]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        usable = [item for i in indices if (item := self.dataset.get(i)) is not None]
        asked = [{"question_id": item["question_id"], "answers": item["answers"]} for item in usable]
        if not usable:
            return asked, {}
        features = self.collator(usable)
        return asked, {name: features[name] for name in ("pixel_values", "input_ids", "attention_mask")}


def _answer_all(
    answer: Callable[[dict[str, Tensor]], list[str]],
    batches: Iterable[tuple[list[dict[str, Any]], dict[str, Tensor]]],
    model: BlipForQuestionAnswering,
) -> tuple[dict[int | str, str], list[float]]:
    """Answers by id of their questions, and the accuracies of those that can be judged."""
    predictions: dict[int | str, str] = {}
    accuracies = []
    for asked, features in batches:
        if not asked:
            continue
        inputs = {name: value.to(model.device) for name, value in features.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        for question, own in zip(asked, answer(inputs), strict=True):
            question_id = question["question_id"]
            if question_id in predictions:
                raise ValueError(f"Two questions have the id {question_id!r}. Evaluate their files one by one.")
            predictions[question_id] = own
            if question["answers"]:
                accuracies.append(vqa_accuracy(own, question["answers"]))
    return predictions, accuracies


def _write(
    inputs: dict[str, Tensor], model: BlipForQuestionAnswering, processor: BlipProcessor, **settings: int
) -> list[str]:
    sequences = model.generate(**inputs, **settings)
    return [
        _SPLIT_MARK.sub(lambda mark: mark.group().strip(), text) for text in processor.post_process_captions(sequences)
    ]


def _choose(
    inputs: dict[str, Tensor],
    model: BlipForQuestionAnswering,
    answer_list: Sequence[str],
    rows: dict[str, Tensor],
    num_candidates: int,
) -> list[str]:
    ranking = model.rank_answers(**inputs, **rows, num_candidates=num_candidates)
    return [answer_list[index] for index in ranking.best.tolist()]


def _tokenize(processor: BlipProcessor, answer_list: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    rows = processor(text=list(answer_list), role="lm", max_length=MAX_ANSWER_LENGTH, return_tensors="pt").to(device)
    return {"answer_ids": rows["input_ids"], "answer_attention_mask": rows["attention_mask"]}


__all__ = ["VqaResult", "check_choice", "evaluate_vqa", "normalize_answer", "vqa_accuracy", "write_vqa_results"]
