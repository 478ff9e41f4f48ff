# SPDX-License-Identifier: BSD-3-Clause
"""Visual question answering (paper, section 5.4)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.defaults import NUM_CANDIDATES, VQA_BATCH_SIZE
from .base import (
    BaseEvaluateOptions,
    BaseFinetuneOptions,
    FinetuningRun,
    Source,
    checkpoint_type,
    load_for_evaluation,
    load_for_training,
    prepare_for_training,
    run_finetuning,
)


if TYPE_CHECKING:
    from ..data.readers.vqa import VqaRecord
    from ..modeling.vqa import BlipForQuestionAnswering
    from ..training import BlipFinetuningArguments


@dataclass(kw_only=True)
class AnswerOptions:
    """How questions are read and answered."""

    answer_list: str | None = field(
        default=None,
        metadata={"help": "JSON list of answers to rank (default: answers are generated)", "metavar": "FILE"},
    )
    num_candidates: int = field(
        default=NUM_CANDIDATES, metadata={"help": "Answers of the list that are scored in full"}
    )
    answer_sets: bool = field(
        default=False,
        metadata={"help": "Read a list of answers as one answer, as in DAQUAR, not as the votes of several people"},
    )
    blind: bool = field(
        default=False, metadata={"help": "Replace each image by a grey one, as a baseline of text alone"}
    )


@dataclass(kw_only=True)
class FinetuneOptions(AnswerOptions, BaseFinetuneOptions):
    """Options of the fine-tuning of a VQA model."""

    annotations: str | None = field(
        default=None, metadata={"help": "Answers of --data, if that is a VQA v2 file", "metavar": "FILE"}
    )
    eval_annotations: str | None = field(
        default=None, metadata={"help": "Answers of --eval_data, if that is a VQA v2 file", "metavar": "FILE"}
    )

    def training_source(self) -> Source:
        """Where the training set is."""
        return replace(super().training_source(), annotations=self.annotations)

    def evaluation_source(self) -> Source:
        """Where the set to evaluate on is."""
        return replace(super().evaluation_source(), annotations=self.eval_annotations)


@dataclass(kw_only=True)
class EvaluateOptions(AnswerOptions, BaseEvaluateOptions):
    """Options of the evaluation of a VQA model."""

    annotations: str | None = field(
        default=None, metadata={"help": "Answers of --data, if that is a VQA v2 file", "metavar": "FILE"}
    )
    batch_size: int = field(default=VQA_BATCH_SIZE, metadata={"help": "Questions per batch"})

    def evaluation_source(self) -> Source:
        """Where the set to evaluate on is."""
        return replace(super().evaluation_source(), annotations=self.annotations)


class BlindQuestions(Sequence["VqaRecord"]):
    """Questions with a grey image in place of their own."""

    def __init__(self, questions: Sequence["VqaRecord"]) -> None:
        from PIL import Image

        self.questions = questions
        self.image = Image.new("RGB", (8, 8), "grey")

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, i: int) -> "VqaRecord":
        return {**self.questions[i], "image": self.image}


def load_model(options: FinetuneOptions) -> "BlipForQuestionAnswering":
    """Loads a VQA model, or makes one of a pre-training checkpoint, for training."""
    from ..modeling.pretraining import BlipForPreTraining
    from ..modeling.vqa import BlipForQuestionAnswering

    if checkpoint_type(options.model) == BlipForPreTraining.config_class.model_type:
        model = BlipForQuestionAnswering.from_pretraining(load_for_training(BlipForPreTraining, options))
    else:
        model = load_for_training(BlipForQuestionAnswering, options)
    return prepare_for_training(model, options)


def load_records(
    source: Source, options: FinetuneOptions | EvaluateOptions, image_size: int
) -> Sequence["VqaRecord"]:
    """Reads questions and their answers."""
    from ..data.readers.vqa import load_vqa

    scenes = source.scenes(image_size)
    if scenes is not None:
        questions = load_vqa(scenes)
    else:
        questions = load_vqa(
            source.path_or_paths,
            annotations=source.annotations,
            image_root=options.image_root,
            answer_lists="set" if options.answer_sets else "votes",
        )
    return BlindQuestions(questions) if options.blind else questions


def load_answer_list(options: AnswerOptions) -> list[str] | None:
    """Reads the answers to rank, or returns `None` if answers are generated; checks them for the evaluation."""
    from ..data.readers.records import read_json
    from ..evaluation.vqa import check_answer_list

    if options.answer_list is None:
        return None
    answers = read_json(Path(options.answer_list))
    check_answer_list(answers, options.num_candidates)
    return answers


def finetune(options: FinetuneOptions, arguments: "BlipFinetuningArguments") -> dict[str, float]:
    """Fine-tunes a VQA model, saves it with its processor, and evaluates it on `eval_data`.

    Args:
        options (`FinetuneOptions`):
            The checkpoint, the data and how to answer.
        arguments ([`BlipFinetuningArguments`]):
            Arguments of the trainer, such as `BlipFinetuningArguments.for_task("vqa", output_dir=...)`.

    Returns:
        `dict[str, float]`: metrics of the training, and as `eval_...` those of the evaluation and
        `accuracy_of_most_common_answer`, the accuracy of the training set's most common answer to every question.
    """
    from ..data.vqa import BlipVqaCollator, VqaDataset
    from ..evaluation.vqa import evaluate_vqa

    # A mistake in the list shows before the training.
    answer_list = None if options.eval_data is None else load_answer_list(options)

    def evaluate_run(run: FinetuningRun) -> dict[str, float]:
        result = evaluate_vqa(
            run.model,
            run.processor,
            run.eval_records,
            answer_list=answer_list,
            num_candidates=options.num_candidates,
            batch_size=run.batch_size,
        )
        return {**result.metrics(), **_accuracy_of_most_common_answer(run)}

    return run_finetuning(
        options,
        arguments,
        load_model=load_model,
        load_records=load_records,
        dataset_class=VqaDataset,
        make_collator=BlipVqaCollator,
        evaluate=evaluate_run,
    )


def evaluate(options: EvaluateOptions) -> dict[str, float]:
    """Evaluates a VQA model, and writes its answers to `output` if that is given.

    Returns:
        `dict[str, float]`: the accuracy, if the questions have answers, and counts.
    """
    from ..evaluation.vqa import evaluate_vqa, write_vqa_results
    from ..modeling.vqa import BlipForQuestionAnswering

    answer_list = load_answer_list(options)
    model, processor = load_for_evaluation(BlipForQuestionAnswering, options)
    result = evaluate_vqa(
        model,
        processor,
        load_records(options.evaluation_source(), options, model.config.vision_config.image_size),
        answer_list=answer_list,
        num_candidates=options.num_candidates,
        batch_size=options.batch_size,
        show_progress=not options.no_progress,
    )
    if options.output is not None:
        write_vqa_results(result.predictions, options.output)
    return result.metrics()


def _accuracy_of_most_common_answer(run: FinetuningRun) -> dict[str, Any]:
    from ..data.readers.vqa import most_common_answers
    from ..evaluation.vqa import vqa_accuracy

    (guess,) = most_common_answers(run.train_records, 1)
    accuracies = [vqa_accuracy(guess, record["answers"]) for record in run.eval_records if record["answers"]]
    return {"accuracy_of_most_common_answer": sum(accuracies) / len(accuracies)} if accuracies else {}


__all__ = ["BlindQuestions", "EvaluateOptions", "FinetuneOptions", "evaluate", "finetune", "load_model"]
