# SPDX-License-Identifier: BSD-3-Clause
"""Visual question answering (paper, section 5.4): fine-tunes a VQA model, and evaluates its answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.defaults import NUM_CANDIDATES
from . import base, finetuning
from .loading import add_loading_skips
from .options import option
from .source import Source, one_or_several


if TYPE_CHECKING:
    from ..data.readers.vqa import VqaRecord
    from ..modeling.vqa import BlipForQuestionAnswering
    from ..training import BlipFinetuningArguments


@dataclass(kw_only=True)
class AnswerOptions:
    """How questions are read and answered."""

    answer_list: str | None = option(None, "JSON list of answers to rank (default: answers are generated)", "FILE")
    num_candidates: int = option(NUM_CANDIDATES, "Answers of the list that are scored in full (salesforce/BLIP)", "N")
    answer_sets: bool = option(
        False, "A list of answers is one answer of several words, as in DAQUAR, and not the votes of several people"
    )
    blind: bool = option(False, "Show a grey image with each question: the baseline without images")


@dataclass(kw_only=True)
class FinetuneOptions(AnswerOptions, base.FinetuneOptions):
    """Options of fine-tuning for VQA."""

    annotations: str | None = option(None, "Answers of --data if it is a VQA v2 file", "FILE")
    eval_annotations: str | None = option(None, "Answers of --eval_data if it is a VQA v2 file", "FILE")

    def training_source(self) -> Source:
        """Returns the source of the training set."""
        return replace(super().training_source(), annotations=self.annotations)

    def evaluation_source(self) -> Source | None:
        """Returns the source of the evaluation set, if there is one."""
        source = super().evaluation_source()
        return None if source is None else replace(source, annotations=self.eval_annotations)


@dataclass(kw_only=True)
class EvaluateOptions(AnswerOptions, base.EvaluateOptions):
    """Options of evaluating VQA."""

    annotations: str | None = option(None, "Answers of --data if it is a VQA v2 file", "FILE")

    def evaluation_source(self) -> Source:
        """Returns the source of the evaluation set."""
        return replace(super().evaluation_source(), annotations=self.annotations)


class BlindQuestions(Sequence["VqaRecord"]):
    """The same questions about a grey image: what can be answered without the image.

    Args:
        questions (sequence of records):
            Questions about images.
    """

    def __init__(self, questions: Sequence[Mapping[str, Any]]) -> None:
        from PIL import Image

        self.questions = questions
        self.image = Image.new("RGB", (8, 8), "grey")

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, i: int) -> "VqaRecord":  # type: ignore[override]  # no slices
        question: Any = {**self.questions[i], "image": self.image}
        return question


def load_model(options: FinetuneOptions) -> "BlipForQuestionAnswering":
    """Loads the model to start from, a VQA or a pre-training checkpoint, with float32 weights."""
    from ..modeling.pretraining import BlipForPreTraining
    from ..modeling.vqa import BlipForQuestionAnswering

    if base.checkpoint_type(options.model) == BlipForPreTraining.config_class.model_type:
        model = BlipForQuestionAnswering.from_pretraining(base.load_for_training(BlipForPreTraining, options))
    else:
        model = base.load_for_training(BlipForQuestionAnswering, options)
    return base.prepare_for_training(model, options)


def finetune(options: FinetuneOptions, arguments: "BlipFinetuningArguments") -> dict[str, float]:
    """Fine-tunes for VQA, saves the model with its processor, and evaluates it if there is a set for that.

    Args:
        options (`FinetuneOptions`):
            Model, data and answers.
        arguments (`BlipFinetuningArguments`):
            Arguments of the trainer.

    Returns:
        `dict[str, float]`: metrics of training, and as `eval_...` the accuracy, beside that of always giving the most
        common answer of the training set.
    """
    from ..data.vqa import BlipVqaCollator, VqaDataset
    from ..training.task_metrics import vqa_evaluation

    finetuning.check_options(options, arguments)
    evaluation = None
    if options.eval_data is not None:
        answer_list = read_answer_list(options)  # fails here rather than after training
        evaluation = vqa_evaluation(answer_list=answer_list, num_candidates=options.num_candidates)
    model, processor = load_model(options), base.load_processor(options.model, options.image_size)
    return finetuning.run_finetuning(
        options,
        arguments,
        model=model,
        processor=processor,
        read_records=partial(_read_answered_questions, options),
        dataset_class=VqaDataset,
        collator=BlipVqaCollator(processor),
        evaluation=evaluation,
        baseline=_most_common_answer_baseline,
    )


def evaluate(options: EvaluateOptions) -> dict[str, float]:
    """Evaluates a VQA model, and writes its answers if the options name a file.

    Args:
        options (`EvaluateOptions`):
            Model, data and answers.

    Returns:
        `dict[str, float]`: the accuracy, if the questions have answers, `num_scored` and `num_skipped`.

    Raises:
        ValueError: If no question has an answer and the options name no file to write answers to.
    """
    from ..data.readers.usable import recorded_files
    from ..evaluation.vqa import evaluate_vqa, write_vqa_results
    from ..modeling.vqa import BlipForQuestionAnswering

    answer_list = read_answer_list(options)
    model, processor = base.load_for_evaluation(BlipForQuestionAnswering, options)
    with recorded_files() as files:
        questions = _read_questions(options, options.evaluation_source(), base.image_size_of(model))
    if options.output is None:
        _check_answers(questions, options)
    result = evaluate_vqa(
        model,
        processor,
        questions,
        answer_list=answer_list,
        num_candidates=options.num_candidates,
        batch_size=options.batch_size,
        num_workers=options.workers,
        show_progress=not options.no_progress,
    )
    if options.output is not None:
        write_vqa_results(result.predictions, options.output)
    elif result.accuracy is None:
        raise ValueError(
            f"No question of {', '.join(options.data)} that has an answer could be used. See the warnings."
        )
    return add_loading_skips(result.metrics(), files)


def read_answer_list(options: AnswerOptions) -> list[str] | None:
    """Reads and checks the answers to rank; `None` if answers are generated.

    Raises:
        ValueError: If the file cannot be read or does not hold a list of answers, or `num_candidates` is too small.
    """
    from ..data.readers.records import read_json
    from ..evaluation.vqa import check_choice

    if options.answer_list is None:
        return None
    answers = read_json(Path(options.answer_list))
    check_choice(answers, options.num_candidates)
    return answers


def _read_questions(options: AnswerOptions, source: Source, image_size: int) -> "Sequence[VqaRecord]":
    from ..data.readers import load_vqa

    if source.is_scenes:
        questions = load_vqa(source.scenes(image_size))
    else:
        questions = load_vqa(
            one_or_several(source.data),
            annotations=source.annotations,
            image_root=source.image_root,
            allow_outside=source.allow_outside,
            answer_lists="set" if options.answer_sets else "votes",
        )
    return BlindQuestions(questions) if options.blind else questions


def _read_answered_questions(options: FinetuneOptions, source: Source, image_size: int) -> "Sequence[VqaRecord]":
    from ..data.readers.vqa import has_answers

    questions = _read_questions(options, source, image_size)
    if not has_answers(questions):
        raise ValueError(
            f"None of the {len(questions)} questions of {', '.join(source.data)} has an answer. Pass questions with answers;"
            " those of VQA's own files are in a file of annotations (`annotations`, `eval_annotations`)."
        )
    return questions


def _check_answers(questions: "Sequence[VqaRecord]", options: EvaluateOptions) -> None:
    from ..data.readers.vqa import has_answers

    if not has_answers(questions):
        raise ValueError(
            f"None of the {len(questions)} questions of {', '.join(options.data)} has an answer, so the accuracy cannot be computed."
            " Pass the answers of VQA's own files as `annotations`, or a file for the predictions as `output`."
        )


def _most_common_answer_baseline(
    questions: "Sequence[VqaRecord]", eval_questions: "Sequence[VqaRecord]"
) -> dict[str, float]:
    from ..data.readers import most_common_answers
    from ..evaluation.vqa import vqa_accuracy

    (guess,) = most_common_answers(questions, 1)
    accuracies = [vqa_accuracy(guess, question["answers"]) for question in eval_questions if question["answers"]]
    return {"accuracy_of_most_common_answer": sum(accuracies) / len(accuracies)} if accuracies else {}


__all__ = ["BlindQuestions", "EvaluateOptions", "FinetuneOptions", "evaluate", "finetune", "load_model"]
