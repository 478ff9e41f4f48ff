# SPDX-License-Identifier: BSD-3-Clause
"""VQA evaluation (BLIP, section 5.4): generates answers or ranks a list of them, and computes the VQA accuracy."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.readers.vqa import VqaRecord
from ..data.vqa import MAX_ANSWER_LENGTH, BlipVqaCollator, VqaDataset
from ..distributed import gather_objects, rank, world_size
from ..files import write_json
from ..finite import require_finite_results
from ..image_files import image_suffixes
from ..modeling.logits_check import LogitsCheck
from ..modeling.vqa import BlipForQuestionAnswering
from ..processing_blip import BlipProcessor
from .defaults import BATCH_SIZE, NUM_CANDIDATES
from .features import evaluating


ARTICLES = {"a", "an", "the"}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
PUNCTUATION = ';/[]"{}()=+\\_->@<`,?!'
# Contractions of the official VQA evaluation, by ending. It omits those that are words without the apostrophe: its,
# well, were.
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

# Number, id, answer and accuracy of a question; the accuracy is `None` without ground truth.
_Answered = tuple[int, int | str, str, float | None]

# Decoded BERT tokens have spaces around every mark. These marks rarely have any in an answer.
_SPLIT_MARK = re.compile(r"(?<=\w) ' (?=\w)|(?<=\d) [.,:] (?=\d)")


def _misspelt() -> dict[str, str]:
    """Maps each contraction without one of its apostrophes to the full form."""
    full = [stem + ending for ending, stems in _CONTRACTED.items() for stem in stems.split()]
    full.append("'twas")
    return {word[: mark.start()] + word[mark.end() :]: word for word in full for mark in re.finditer("'", word)}


CONTRACTIONS = _misspelt()


def normalize_answer(answer: str) -> str:
    """Normalises an answer for comparison, as the official VQA evaluation does.

    It lower-cases, drops articles, writes numbers up to ten as digits, and restores apostrophes of contractions. A mark of
    `PUNCTUATION` is deleted if it touches a space anywhere in the answer or if the answer has a number like 1,000;
    otherwise it becomes a space. A full stop is deleted unless a digit follows.

    The official evaluation keeps articles and number words of ground-truth answers, which have neither in VQA.

    Example:
        >>> normalize_answer("The T-shirt."), normalize_answer("Two, dont know"), normalize_answer("1,000")
        ('t shirt', "2 don't know", '1000')
    """
    text = " ".join(answer.split())
    has_long_number = re.search(r"\d,\d", text) is not None
    marks = {mark: "" if has_long_number or f"{mark} " in text or f" {mark}" in text else " " for mark in PUNCTUATION}
    text = re.sub(r"\.(?!\d)", "", text.translate({ord(mark): other for mark, other in marks.items()}))
    words = [DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Returns the VQA accuracy of a prediction: the mean of `min(matches / 3, 1)` over the lists without one annotator.

    A single ground-truth answer gives 0 or 1.

    Raises:
        ValueError: If there are no answers.

    Example:
        >>> vqa_accuracy("A dog", ["dog"] * 2 + ["cat"] * 8)  # (2 * 1/3 + 8 * 2/3) / 10
        0.6
    """
    if not answers:
        raise ValueError("There are no answers to compare with. Leave the question out.")
    prediction = normalize_answer(prediction)
    num_answers = len(answers)
    num_matches = sum(normalize_answer(answer) == prediction for answer in answers)
    if num_answers == 1:
        return float(num_matches)
    # Without an annotator who matches, one match less remains.
    matching = num_matches * min((num_matches - 1) / 3, 1)
    others = (num_answers - num_matches) * min(num_matches / 3, 1)
    return (matching + others) / num_answers


@dataclass(frozen=True)
class VqaResult:
    """Answers of a model and their accuracy.

    Args:
        accuracy (`float`, *optional*):
            Mean [`vqa_accuracy`] of the questions with ground truth; `None` if there are none, as in test sets.
        predictions (`dict[int | str, str]`):
            Answer by question id.
        num_scored (`int`):
            Questions with ground truth.
        num_skipped (`int`):
            Questions skipped because they or their images cannot be used.
        num_skipped_by_reason (`dict[str, int]`):
            The same by reason, as in [`~blip_hf.data.readers`].
    """

    accuracy: float | None
    predictions: dict[int | str, str] = field(repr=False)
    num_scored: int
    num_skipped: int
    num_skipped_by_reason: dict[str, int] = field(default_factory=dict)

    def metrics(self) -> dict[str, Any]:
        """Returns the accuracy, if there is one, and the counts as one dictionary."""
        skipped = {"num_skipped": self.num_skipped, "num_skipped_by_reason": self.num_skipped_by_reason}
        if self.accuracy is None:
            return {"num_answered": len(self.predictions), **skipped}
        return {"accuracy": self.accuracy, "num_scored": self.num_scored, **skipped}


def evaluate_vqa(
    model: BlipForQuestionAnswering,
    processor: BlipProcessor,
    questions: Sequence[VqaRecord],
    *,
    answer_list: Sequence[str] | None = None,
    num_candidates: int = NUM_CANDIDATES,
    num_beams: int = 3,
    max_length: int = 10,
    min_length: int = 1,
    batch_size: int = BATCH_SIZE,
    normalize_questions: bool = True,
    num_workers: int = 0,
    show_progress: bool = False,
) -> VqaResult:
    """Answers questions and computes the VQA accuracy. Answers are ranked if a list is given, else generated.

    The defaults are those of salesforce/BLIP, `models/blip_vqa.py` and `configs/vqa.yaml`. Under `torch.distributed` each
    process answers a share of the questions, and all return the same result.

    Args:
        model (`BlipForQuestionAnswering`):
            The model; its mode, device and dtype are kept.
        processor (`BlipProcessor`):
            The processor it was trained with.
        questions (sequence of [`~blip_hf.data.readers.vqa.VqaRecord`]):
            The output of [`~blip_hf.data.readers.load_vqa`], or a list. Unreadable ones are skipped with a warning.
        answer_list (sequence of `str`, *optional*):
            Answers to rank, such as VQA's `answer_list.json` or the output of
            [`~blip_hf.data.readers.vqa.most_common_answers`]. Without it, answers are generated.
        num_candidates (`int`, *optional*, defaults to 128):
            Answers per question that are scored in full. The others are ruled out by their first token.
        num_beams (`int`, *optional*, defaults to 3):
            Beams of generation.
        max_length (`int`, *optional*, defaults to 10):
            Maximum number of generated tokens, including `[DEC]` and `[SEP]`.
        min_length (`int`, *optional*, defaults to 1):
            Minimum number of generated tokens, including `[DEC]`.
        batch_size (`int`, *optional*, defaults to 32):
            Questions per batch. Ranking takes `batch_size * num_candidates * tokens * vocabulary size * 4` bytes.
        normalize_questions (`bool`, *optional*, defaults to `True`):
            Whether to apply [`~blip_hf.data.text.pre_question`], as in training.
        num_workers (`int`, *optional*, defaults to 0):
            Processes that read images.
        show_progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.

    Returns:
        `VqaResult`: accuracy and answers.

    Raises:
        ValueError: If there are no usable questions, two have the same id, or `answer_list` or `num_candidates` is
            invalid.
    """
    if answer_list is not None:
        check_choice(answer_list, num_candidates)
    dataset = VqaDataset(questions, normalize_questions=normalize_questions)
    collate = _EvaluationCollator(dataset, BlipVqaCollator(processor))
    own: Any = range(rank(), len(dataset), world_size())  # indices, for the collator
    batches: Iterable[Any] = DataLoader(own, batch_size=batch_size, num_workers=num_workers, collate_fn=collate)
    if answer_list is None:
        settings: dict[str, Any] = {"num_beams": num_beams, "max_length": max_length, "min_length": min_length}
        answer = partial(_write, model=model, processor=processor, **settings)
    else:
        rows = _tokenize(processor, answer_list, model.device)
        answer = partial(_choose, model=model, answer_list=answer_list, rows=rows, num_candidates=num_candidates)
    with evaluating(model):
        batches = tqdm(batches, desc="Answering", disable=not show_progress or rank() > 0)
        answered = sorted(gather_objects(_answer_all(answer, batches, model)), key=itemgetter(0))
    if not answered:
        raise ValueError(
            f"None of {len(dataset)} questions can be used. Check that image paths start from the right folder"
            " (`image_root` of `load_vqa`)."
        )
    accuracies = [accuracy for *_, accuracy in answered if accuracy is not None]
    return VqaResult(
        accuracy=sum(accuracies) / len(accuracies) if accuracies else None,
        predictions=_by_question(answered),
        num_scored=len(accuracies),
        num_skipped=len(dataset) - len(answered),
        num_skipped_by_reason=dict(dataset.skip_counts(all_processes=True).by_reason),
    )


def check_choice(answer_list: Sequence[str], num_candidates: int) -> None:
    """Raises a ValueError if the answers cannot be ranked, so that commands can check them before a long run."""
    is_list = isinstance(answer_list, Sequence) and not isinstance(answer_list, str)
    if not is_list or not all(isinstance(answer, str) for answer in answer_list):
        raise ValueError(
            "answer_list is not a list of strings. Pass the answers to rank, or None to generate answers."
        )
    if not answer_list:
        raise ValueError("answer_list is empty. Pass the answers to rank, or None to generate answers.")
    if num_candidates < 1:
        raise ValueError(
            f"num_candidates={num_candidates} is too small. Pass the number of answers to score, 1 or more."
        )


def write_vqa_results(predictions: Mapping[int | str, str], path: str | os.PathLike[str]) -> None:
    """Writes answers in the format of the VQA server, or of VizWiz's if the questions are named after images.

    The file appears only when it is complete.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_vqa_results({42: "a dog"}, Path(folder, "results.json"))
        ...     Path(folder, "results.json").read_text()
        '[{"question_id": 42, "answer": "a dog"}]'
    """
    names_images = all(Path(str(question_id)).suffix.lower() in image_suffixes() for question_id in predictions)
    field = "image" if names_images else "question_id"
    write_json([{field: question_id, "answer": answer} for question_id, answer in predictions.items()], path)


class _EvaluationCollator:
    """Collates the usable questions at given indices; returns them without images, and the inputs of the model."""

    def __init__(self, dataset: VqaDataset, collator: BlipVqaCollator) -> None:
        self.dataset = dataset
        self.collator = collator

    def __call__(self, indices: Sequence[int]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        usable = {i: item for i in indices if (item := self.dataset.get(i)) is not None}
        asked = [
            {"number": i, "question_id": item["question_id"], "answers": item["answers"]} for i, item in usable.items()
        ]
        if not usable:
            return asked, {}
        features = self.collator(list(usable.values()))
        return asked, {name: features[name] for name in ("pixel_values", "input_ids", "attention_mask")}


def _answer_all(
    answer: Callable[[dict[str, Tensor], list[str]], list[str]],
    batches: Iterable[tuple[list[dict[str, Any]], dict[str, Tensor]]],
    model: BlipForQuestionAnswering,
) -> list[_Answered]:
    """Answers the questions of this process."""
    answered = []
    for asked, features in batches:
        if not asked:
            continue
        inputs = {name: value.to(model.device) for name, value in features.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        ids = [f"of question {question['question_id']}" for question in asked]
        for question, own in zip(asked, answer(inputs, ids), strict=True):
            accuracy = vqa_accuracy(own, question["answers"]) if question["answers"] else None
            answered.append((question["number"], question["question_id"], own, accuracy))
    return answered


def _by_question(answered: Sequence[_Answered]) -> dict[int | str, str]:
    predictions: dict[int | str, str] = {}
    for _, question_id, answer, _ in answered:
        if question_id in predictions:
            raise ValueError(f"Two questions have the id {question_id!r}. Evaluate their files one by one.")
        predictions[question_id] = answer
    return predictions


def _write(
    inputs: dict[str, Any],
    ids: list[str],
    model: BlipForQuestionAnswering,
    processor: BlipProcessor,
    **settings: Any,
) -> list[str]:
    checks = [LogitsCheck(ids, model=model)]
    return decode_answers(processor, model.generate(**inputs, **settings, logits_processor=checks))


def decode_answers(processor: BlipProcessor, sequences: Tensor) -> list[str]:
    """Decodes generated answers, without spaces around the marks inside a word or a number."""
    return [
        _SPLIT_MARK.sub(lambda mark: mark.group().strip(), text) for text in processor.post_process_captions(sequences)
    ]


def _choose(
    inputs: dict[str, Any],
    ids: list[str],
    model: BlipForQuestionAnswering,
    answer_list: Sequence[str],
    rows: dict[str, Any],
    num_candidates: int,
) -> list[str]:
    ranking = model.rank_answers(**inputs, **rows, num_candidates=num_candidates)
    require_finite_results(ranking.scores.isfinite().all(dim=1).tolist(), ids, model=model)
    return [answer_list[index] for index in ranking.best.tolist()]


def _tokenize(processor: BlipProcessor, answer_list: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    rows = processor(text=list(answer_list), role="lm", max_length=MAX_ANSWER_LENGTH, return_tensors="pt").to(device)
    return {"answer_ids": rows["input_ids"], "answer_attention_mask": rows["attention_mask"]}


__all__ = [
    "VqaResult",
    "check_choice",
    "decode_answers",
    "evaluate_vqa",
    "normalize_answer",
    "vqa_accuracy",
    "write_vqa_results",
]
