# SPDX-License-Identifier: BSD-3-Clause
"""Visual question answering (paper, section 5.4): fine-tune a model that answers, and measure its answers."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from ..configuration_blip import BlipConfig, BlipPreTrainingConfig
from ..data.readers.records import read_json
from ..data.readers.vqa import VqaRecord, load_vqa, most_common_answers
from ..data.vqa import BlipVqaCollator, VqaDataset
from ..evaluation.vqa import VqaResult, check_choice, evaluate_vqa, vqa_accuracy, write_vqa_results
from ..modeling.pretraining import BlipForPreTraining
from ..modeling.vqa import BlipForQuestionAnswering
from ..training import BlipFinetuningArguments, BlipTrainer
from .base import (
    checkpoint_type,
    evaluation_scenes,
    evaluation_source,
    image_size_of,
    load_for_evaluation,
    load_processor,
    one_or_several,
    prefixed,
    prepare_for_training,
    read_config,
    train_and_save,
    training_scenes,
    training_transform,
    warn_of_training_data,
)
from .options import SCENES, VqaEvaluateOptions, VqaFinetuneOptions


class BlindQuestions(Sequence[VqaRecord]):
    """The same questions about a grey image: what can be answered without looking.

    Args:
        questions (sequence of [`VqaRecord`]):
            Questions about images.
    """

    def __init__(self, questions: Sequence[VqaRecord]) -> None:
        self.questions = questions
        self.image = Image.new("RGB", (8, 8), "grey")

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, i: int) -> VqaRecord:
        return {**self.questions[i], "image": self.image}


def load_model(options: VqaFinetuneOptions) -> BlipForQuestionAnswering:
    """Loads the model to start from, in training mode: one that answers, or a pre-training checkpoint.

    Args:
        options (`VqaFinetuneOptions`):
            Options of the command.

    Returns:
        `BlipForQuestionAnswering`: with float32 weights.
    """
    if checkpoint_type(options.model) == BlipPreTrainingConfig.model_type:
        config = read_config(BlipPreTrainingConfig, options)
        whole = BlipForPreTraining.from_pretrained(options.model, config=config, dtype=torch.float32)
        model = BlipForQuestionAnswering.from_pretraining(whole)
    else:
        config = read_config(BlipConfig, options)
        model = BlipForQuestionAnswering.from_pretrained(options.model, config=config, dtype=torch.float32)
    return prepare_for_training(model, options)


def finetune(options: VqaFinetuneOptions, arguments: BlipFinetuningArguments) -> dict[str, float]:
    """Fine-tunes the model, saves it with its processor, and evaluates it where there is a set for that.

    Args:
        options (`VqaFinetuneOptions`):
            What to train on.
        arguments (`BlipFinetuningArguments`):
            How.

    Returns:
        `dict[str, float]`: metrics of training, and as `eval_...` the accuracy, with that of the training set's most
        common answer to every question beside it.
    """
    answer_list = None
    if options.eval_data is not None:
        warn_of_training_data(options)
        answer_list = read_answer_list(options)
    model, processor = load_model(options), load_processor(options.model, options.image_size)
    image_size = image_size_of(model)
    questions = _training_questions(options, image_size)
    eval_questions = None if options.eval_data is None else _evaluation_questions(options, image_size)
    trainer = BlipTrainer(
        model,
        arguments,
        train_dataset=VqaDataset(questions, _transform(options, image_size), seed=arguments.seed),
        eval_dataset=None if eval_questions is None else VqaDataset(eval_questions),
        data_collator=BlipVqaCollator(processor),
        processing_class=processor,
    )
    metrics = train_and_save(trainer)
    if eval_questions is not None and trainer.is_world_process_zero():
        result = evaluate_vqa(
            model,
            processor,
            eval_questions,
            answer_list=answer_list,
            num_candidates=options.num_candidates,
            batch_size=arguments.per_device_eval_batch_size,
        )
        metrics |= prefixed(_table(result))
        (guess,) = most_common_answers(questions, 1)
        accuracies = [vqa_accuracy(guess, question["answers"]) for question in eval_questions if question["answers"]]
        if accuracies:
            metrics["eval_accuracy_of_most_common_answer"] = sum(accuracies) / len(accuracies)
    return metrics


def evaluate(options: VqaEvaluateOptions) -> dict[str, float]:
    """Evaluates a model, and writes its answers where a file is named.

    Args:
        options (`VqaEvaluateOptions`):
            What to evaluate, and on what.

    Returns:
        `dict[str, float]`: the accuracy, where the questions have answers, and counts.
    """
    answer_list = read_answer_list(options)
    model, processor = load_for_evaluation(BlipForQuestionAnswering, options)
    questions = _evaluation_questions(options, image_size_of(model))
    result = evaluate_vqa(
        model,
        processor,
        questions,
        answer_list=answer_list,
        num_candidates=options.num_candidates,
        batch_size=options.batch_size,
        show_progress=not options.no_progress,
    )
    if options.output is not None:
        write_vqa_results(result.predictions, options.output)
    return _table(result)


def read_answer_list(options: VqaFinetuneOptions | VqaEvaluateOptions) -> list[str] | None:
    """Reads the answers to choose from, and refuses what an evaluation would refuse after a long run.

    Args:
        options (`VqaFinetuneOptions` or `VqaEvaluateOptions`):
            Options of the command.

    Returns:
        `list[str]`, *optional*: the answers, or `None` where they are to be written.

    Raises:
        ValueError: If the file cannot be read or holds no list of answers, or there are too few candidates.
    """
    if options.answer_list is None:
        return None
    answers = read_json(Path(options.answer_list))
    check_choice(answers, options.num_candidates)
    return answers


def _transform(options: VqaFinetuneOptions, image_size: int) -> object | None:
    # Drawn images are taken as they are: crops would cut off what is asked about.
    return None if options.data == [SCENES] else training_transform(options, image_size)


def _training_questions(options: VqaFinetuneOptions, image_size: int) -> Sequence[VqaRecord]:
    if options.data == [SCENES]:
        return _seen(load_vqa(training_scenes(options, image_size)), options)
    return _seen(_load(options.data, options.annotations, options), options)


def _evaluation_questions(options: VqaFinetuneOptions | VqaEvaluateOptions, image_size: int) -> Sequence[VqaRecord]:
    source = evaluation_source(options)
    annotations = options.eval_annotations if isinstance(options, VqaFinetuneOptions) else options.annotations
    if source == [SCENES]:
        return _seen(load_vqa(evaluation_scenes(options, image_size)), options)
    return _seen(_load(source, annotations, options), options)


def _load(
    source: list[str], annotations: str | None, options: VqaFinetuneOptions | VqaEvaluateOptions
) -> Sequence[VqaRecord]:
    return load_vqa(
        one_or_several(source),
        annotations=annotations,
        image_root=options.image_root,
        answer_lists="set" if options.answer_sets else "votes",
    )


def _seen(questions: Sequence[VqaRecord], options: VqaFinetuneOptions | VqaEvaluateOptions) -> Sequence[VqaRecord]:
    return BlindQuestions(questions) if options.blind else questions


def _table(result: VqaResult) -> dict[str, float]:
    accuracy = {} if result.accuracy is None else {"accuracy": result.accuracy}
    return {**accuracy, "num_scored": result.num_scored, "num_skipped": result.num_skipped}


__all__ = ["BlindQuestions", "evaluate", "finetune", "load_model", "read_answer_list"]
