# SPDX-License-Identifier: BSD-3-Clause
"""Answers to questions about images, generated or ranked from a list, with their probabilities."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ..data.image_batches import ImageResult, OnError, image_batches
from ..data.text import pre_question
from ..data.vqa import MAX_ANSWER_LENGTH
from ..image_utils import ImageSource
from ..modeling.caption import sum_log_probabilities
from ..modeling.vqa import BlipForQuestionAnswering
from ..processing_blip import BlipProcessor
from .defaults import NUM_CANDIDATES
from .features import evaluating
from .vqa import check_choice, decode_answers


@dataclass(frozen=True, kw_only=True)
class Answer(ImageResult):
    """An answer to a question about an image."""

    question: str | None = None
    """The question as it was asked; `None` if the image could not be read."""
    text: str | None = None
    """The answer."""
    confidence: float | None = None
    """Probability of the answer: among all texts if it was generated, among the candidates if it was ranked."""


def answer_questions(
    model: BlipForQuestionAnswering,
    processor: BlipProcessor,
    images: Iterable[ImageSource],
    questions: str | Sequence[str],
    *,
    answer_list: Sequence[str] | None = None,
    num_candidates: int = NUM_CANDIDATES,
    top_k: int = 1,
    num_beams: int = 3,
    max_length: int = 10,
    min_length: int = 1,
    batch_size: int = 8,
    normalize_questions: bool = True,
    num_workers: int = 0,
    on_error: OnError = "raise",
    pairwise: bool = False,
) -> list[Answer]:
    """Answers each question about each image. Answers are ranked if a list is given, else generated.

    To measure the accuracy on a data set, use
    [`~blip_hf.evaluation.vqa.evaluate_vqa`].

    Args:
        model (`BlipForQuestionAnswering`):
            The model; its mode, device and dtype are kept.
        processor (`BlipProcessor`):
            The processor it was trained with.
        images (iterable of `ImageSource`):
            Paths, PIL images, or any other form that [`~blip_hf.image_utils.open_image`] reads.
        questions (`str` or sequence of `str`):
            Questions to ask about each image.
        answer_list (sequence of `str`, *optional*):
            Answers to choose from. Without it, answers are generated.
        num_candidates (`int`, *optional*, defaults to 128):
            Answers of the list that are scored in full. The others are ruled out by their first token.
        top_k (`int`, *optional*, defaults to 1):
            Number of answers per question, best first. More than one needs a list, or as many beams.
        num_beams (`int`, *optional*, defaults to 3):
            Beams of generation.
        max_length (`int`, *optional*, defaults to 10):
            Maximum number of generated tokens, including `[DEC]` and `[SEP]`.
        min_length (`int`, *optional*, defaults to 1):
            Minimum number of generated tokens, including `[DEC]`.
        batch_size (`int`, *optional*, defaults to 8):
            Images per batch.
        normalize_questions (`bool`, *optional*, defaults to `True`):
            Whether to apply [`~blip_hf.data.text.pre_question`], as in training.
        num_workers (`int`, *optional*, defaults to 0):
            Threads that read images ahead of the model.
        on_error (`"raise"` or `"skip"`, *optional*, defaults to `"raise"`):
            Whether to raise an error for an unreadable image, or to return one `Answer` with its `error`.
        pairwise (`bool`, *optional*, defaults to `False`):
            Whether each image has one question, `questions[i]`, rather than all of them.

    Returns:
        `list[Answer]`: `top_k` answers per question, at most as many as the list has, in the order of images and questions.

    Raises:
        ValueError: If there are no questions, one has no words, or the list or `top_k` is invalid; with `pairwise`, if
            the numbers of images and questions differ.
        UnreadableImageError: If an image cannot be read and `on_error` is `"raise"`.

    Example:
        >>> answer_questions(model, processor, ["dog.jpg"], "what is it?")  # doctest: +SKIP
        [Answer(image_index=0, question='what is it?', text='dog', confidence=0.83)]
    """
    questions = [questions] if isinstance(questions, str) else list(questions)
    asked = [pre_question(question) for question in questions] if normalize_questions else questions
    if not asked or not all(question.strip() for question in asked):
        raise ValueError(f"questions is {questions!r}, expected at least one question, each with words.")
    if pairwise:
        images = list(images)
        if len(images) != len(questions):
            raise ValueError(f"Got {len(images)} images and {len(questions)} questions. Pass one question per image.")
    rows = processor(text=asked, role="contrast", return_tensors="pt").to(model.device)  # [CLS]; the model sets [ENC]
    if answer_list is None:
        if not 1 <= top_k <= num_beams:
            raise ValueError(f"top_k={top_k} needs as many beams, got num_beams={num_beams}. Pass 1 to {num_beams}.")
        settings: dict[str, Any] = {"num_beams": num_beams, "max_length": max_length, "min_length": min_length}
        answer = partial(_generate, model, processor, top_k=top_k, **settings)
    else:
        check_choice(answer_list, num_candidates)
        if top_k < 1:
            raise ValueError(f"top_k={top_k} is too small. Pass 1 or more.")
        answer = partial(_rank, model, processor, answer_list, top_k=top_k, num_candidates=num_candidates)
    answers: list[Answer] = []
    batches = image_batches(processor, images, batch_size=batch_size, num_workers=num_workers, on_error=on_error)
    with evaluating(model):
        for batch in batches:
            found = batch.failures(Answer)
            if batch.indices:
                own: dict[int, Sequence[int]] = {
                    index: [index] if pairwise else range(len(questions)) for index in batch.indices
                }
                found |= _answer_batch(model, own, batch.pixel_values, questions, rows, answer)
            answers += [own for index in sorted(found) for own in found[index]]
    return answers


def _answer_batch(
    model: BlipForQuestionAnswering,
    own: dict[int, Sequence[int]],
    pixel_values: Tensor,
    questions: list[str],
    rows: Mapping[str, Tensor],
    answer: Callable[..., list[list[tuple[str, float]]]],
) -> dict[int, list[Answer]]:
    """Answers about each of `n` images to its own questions, by index; `own` has their positions."""
    positions = [position for positions in own.values() for position in positions]
    asked = {name: value[positions] for name, value in rows.items()}  # (q, t) -> (n * own questions, t)
    texts = iter(answer(pixel_values=pixel_values.to(model.device, model.dtype), **asked))
    return {
        index: [
            Answer(image_index=index, question=questions[position], text=text, confidence=confidence)
            for position in positions
            for text, confidence in next(texts)
        ]
        for index, positions in own.items()
    }


def _generate(
    model: BlipForQuestionAnswering,
    processor: BlipProcessor,
    *,
    pixel_values: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    top_k: int,
    **settings: Any,
) -> list[list[tuple[str, float]]]:
    """Generated answers to each of `b` questions with their probabilities."""
    memory = model.get_question_memory(input_ids, pixel_values, attention_mask)
    sequences = model.generate(question_memory=memory, num_return_sequences=top_k, **settings)  # (b * k, t)
    logits = model.text_decoder(sequences, image_memory=memory).logits
    sums, _ = sum_log_probabilities(logits, sequences, 1, model.config.text_config.sep_token_id)
    pairs = zip(decode_answers(processor, sequences), sums.exp().tolist(), strict=True)
    return [[next(pairs) for _ in range(top_k)] for _ in range(len(input_ids))]


def _rank(
    model: BlipForQuestionAnswering,
    processor: BlipProcessor,
    answer_list: Sequence[str],
    *,
    top_k: int,
    num_candidates: int,
    **inputs: Any,
) -> list[list[tuple[str, float]]]:
    """The best answers of a list to each of `b` questions, with their probabilities among the candidates."""
    rows = processor(text=list(answer_list), role="lm", max_length=MAX_ANSWER_LENGTH, return_tensors="pt")
    rows = rows.to(model.device)
    with _without_smoothing(model):
        ranking = model.rank_answers(
            **inputs,
            answer_ids=rows["input_ids"],
            answer_attention_mask=rows["attention_mask"],
            num_candidates=num_candidates,
        )
    best = ranking.scores.softmax(dim=1).sort(dim=1, descending=True, stable=True)
    order = ranking.candidates.gather(1, best.indices)[:, :top_k].tolist()  # (b, k)
    return [
        [(answer_list[index], value) for index, value in zip(own, values, strict=True)]
        for own, values in zip(order, best.values[:, :top_k].tolist(), strict=True)
    ]


@contextmanager
def _without_smoothing(model: BlipForQuestionAnswering) -> Iterator[None]:
    """Makes `rank_answers` give log-likelihoods, whose softmax is a probability."""
    config = model.text_decoder.config
    smoothing, config.label_smoothing = config.label_smoothing, 0.0
    try:
        yield
    finally:
        config.label_smoothing = smoothing


__all__ = ["Answer", "answer_questions"]
