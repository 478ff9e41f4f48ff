# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf ask`: answers to questions about images, generated or from a list, with their probabilities."""

from dataclasses import dataclass, field
from pathlib import Path

from ..evaluation.defaults import NUM_CANDIDATES
from .errors import UsageError
from .image_options import TableOptions, is_path
from .parser import Command
from .stop_signals import stop_signals


@dataclass(kw_only=True)
class AskOptions(TableOptions):
    """What `blip-hf ask` takes."""

    images: list[str] = field(
        metadata={
            "help": "Images or folders, then the question, in quotes",
            "positional": True,
            "metavar": "IMAGE",
            "usage": "IMAGE... QUESTION",
        }
    )
    question: list[str] | None = field(
        default=None,
        metadata={
            "help": "Question(s) to ask about each image, in place of the last word",
            "metavar": "QUESTION",
            "repeatable": True,
        },
    )
    answers: list[str] | None = field(
        default=None,
        metadata={
            "help": "Answers to choose from (default: generate an answer)",
            "metavar": "ANSWER",
            "repeatable": True,
        },
    )
    answer_list: Path | None = field(
        default=None, metadata={"help": "JSON list of answers to choose from, for a long list", "metavar": "FILE"}
    )
    num_candidates: int = field(default=NUM_CANDIDATES, metadata={"help": "Answers of a list that are scored in full"})
    top_k: int | None = field(
        default=None, metadata={"help": "Answers to print per question (default: 1, of a list 5)"}
    )
    num_beams: int = field(default=3, metadata={"help": "Beams of generation; at least --top_k"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_candidates", "top_k", "num_beams"):
            self.check_minimum(name, 1)
        if self.answers and self.answer_list:
            raise UsageError("--answers and --answer_list both give answers. Leave one of them out.")
        if self.question is None:
            *self.images, question = self.images
            if not self.images or is_path(question):
                raise UsageError(
                    f"no question after {question}. Write it in quotes after the images, or pass it with --question."
                )
            self.question = [question]


def _run(options: AskOptions) -> int:
    with stop_signals():
        from ..evaluation.answering import answer_questions
        from ..modeling.vqa import BlipForQuestionAnswering

        images = options.find_images()
        answer_list = _answer_list(options)
        model, processor = options.load(BlipForQuestionAnswering)
        answers = answer_questions(
            model,
            processor,
            images,
            options.question or [],
            answer_list=answer_list,
            num_candidates=options.num_candidates,
            top_k=options.top_k or (1 if answer_list is None else 5),
            num_beams=max(options.num_beams, options.top_k or 1),
            batch_size=options.batch_size,
            num_workers=options.workers,
            on_error="skip",
        )
        rows = [
            {
                "image": images.names[answer.image_index],
                "question": answer.question,
                "answer": answer.text,
                "confidence": answer.confidence,
            }
            for answer in answers
            if answer.error is None
        ]
        failures = [answer for answer in answers if answer.error]
        return options.write_results("blip-hf ask", rows, failures, images.names)


def _answer_list(options: AskOptions) -> list[str] | None:
    from ..data.readers.records import read_json
    from ..evaluation.vqa import check_choice

    answers = options.answers if options.answer_list is None else read_json(options.answer_list)
    if answers is not None:
        check_choice(answers, options.num_candidates)
    return answers


COMMAND = Command(
    prog="blip-hf ask",
    description='Answers a question about images with a VQA model: `blip-hf ask MODEL dog.jpg "what is it?"`. The'
    " confidence is the probability of the answer: among all texts if it was generated, among the candidates of a list.",
    options=AskOptions,
    run=_run,
)

__all__ = ["COMMAND", "AskOptions"]
