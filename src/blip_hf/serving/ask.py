# SPDX-License-Identifier: BSD-3-Clause
"""`/ask`: answers to a question about images, generated or chosen from a list."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, ClassVar

from PIL import Image
from pydantic import Field, model_validator

from ..data.text import pre_question
from ..evaluation.answering import Answer, answer_questions
from ..evaluation.defaults import NUM_CANDIDATES
from .errors import RequestError
from .models import ServedModels
from .operation import OperationRequest, OperationResponse, Text


@dataclass(frozen=True)
class AskJob:
    """Answers a question about each image with equal settings."""

    answer_list: tuple[str, ...] | None
    num_candidates: int
    top_k: int
    num_beams: int
    max_length: int
    min_length: int

    name: ClassVar[str] = "ask"

    def run(self, models: ServedModels, inputs: Sequence[tuple[Image.Image, str]]) -> list[list[Answer]]:
        """Answers for each input, a pair of an image and its question."""
        images, questions = zip(*inputs, strict=True)
        vqa = models.vqa
        assert vqa is not None  # the endpoint answers 501 without it
        answers = answer_questions(
            vqa.model,
            vqa.processor,
            images,
            questions,
            answer_list=self.answer_list,
            num_candidates=self.num_candidates,
            top_k=self.top_k,
            num_beams=self.num_beams,
            max_length=self.max_length,
            min_length=self.min_length,
            batch_size=len(images),
            pairwise=True,
        )
        return [list(own) for _, own in groupby(answers, key=attrgetter("image_index"))]


class AskRequest(OperationRequest):
    """A question about each image of the request."""

    head: ClassVar[str] = "vqa"

    question: Text = Field(description="Question about each image")
    answer_list: list[Text] | None = Field(
        None, min_length=1, description="Answers to choose from (default: generate an answer)"
    )
    num_candidates: int = Field(NUM_CANDIDATES, ge=1, description="Answers of the list that are scored in full")
    top_k: int = Field(1, ge=1, le=64, description="Answers per image, best first; without a list at most num_beams")
    num_beams: int = Field(3, ge=1, le=16, description="Beams of generation")
    max_length: int = Field(10, ge=2, le=64, description="Maximum number of generated tokens, with [DEC] and [SEP]")
    min_length: int = Field(1, ge=0, le=64, description="Minimum number of generated tokens, with [DEC]")

    @model_validator(mode="after")
    def _check_combinations(self) -> "AskRequest":
        if self.answer_list is None and self.top_k > self.num_beams:
            raise ValueError(f"top_k={self.top_k} needs as many beams, got num_beams={self.num_beams}")
        if self.min_length > self.max_length:
            raise ValueError(f"min_length={self.min_length} is more than max_length={self.max_length}")
        return self

    def check(self) -> None:
        """Raises if the question has no words."""
        if not pre_question(self.question).strip():
            raise RequestError(422, f"question is {self.question!r}, expected a question with words.")

    def jobs(self, images: Sequence[Image.Image]) -> list[tuple[AskJob, Any]]:
        """One input per image."""
        job = AskJob(
            answer_list=None if self.answer_list is None else tuple(self.answer_list),
            num_candidates=self.num_candidates,
            top_k=self.top_k,
            num_beams=self.num_beams,
            max_length=self.max_length,
            min_length=self.min_length,
        )
        return [(job, (image, self.question)) for image in images]

    def response(self, results: Sequence[list[Any]]) -> "AskResponse":
        """The answers about all images."""
        return AskResponse(
            answers=[
                AnswerAboutImage(image_index=index, text=answer.text, confidence=answer.confidence)
                for index, answers in enumerate(results)
                for answer in answers
            ]
        )


class AnswerAboutImage(OperationResponse):
    """An answer, with the fields of `blip_hf.Answer`."""

    image_index: int = Field(description="Position of the image in the request, from 0")
    text: str
    confidence: float = Field(description="Probability: among all texts if generated, among the candidates if ranked")


class AskResponse(OperationResponse):
    """Answers in the order of the images, best first."""

    answers: list[AnswerAboutImage]


__all__ = ["AskJob", "AskRequest", "AskResponse"]
