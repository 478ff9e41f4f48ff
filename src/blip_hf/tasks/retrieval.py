# SPDX-License-Identifier: BSD-3-Clause
"""Image-text retrieval (paper, section 5.1): fine-tune a matcher, and rank in two stages."""

import torch

from ..configuration_blip import BlipRetrievalTrainingConfig
from ..data.collators import BlipPretrainingCollator
from ..data.pairs import PairDataset
from ..evaluation.retrieval import check_num_candidates, evaluate_retrieval
from ..files import write_json
from ..modeling.retrieval import BlipForImageTextRetrieval
from ..modeling.retrieval_training import BlipForRetrievalTraining
from ..training import BlipContrastiveTrainer, BlipFinetuningArguments
from .base import (
    evaluation_pairs,
    image_size_of,
    load_for_evaluation,
    load_processor,
    prefixed,
    prepare_for_training,
    read_config,
    train_and_save,
    training_pairs,
    warn_of_training_data,
)
from .options import RetrievalEvaluateOptions, RetrievalFinetuneOptions


# Tokens of a caption in BLIP's retrieval, [CLS] and [SEP] included.
MAX_LENGTH = 35


def load_model(options: RetrievalFinetuneOptions) -> BlipForRetrievalTraining:
    """Loads the matcher to start from, with momentum towers and queue, in training mode.

    Args:
        options (`RetrievalFinetuneOptions`):
            Options of the command.

    Returns:
        `BlipForRetrievalTraining`: with float32 weights.
    """
    config = read_config(
        BlipRetrievalTrainingConfig,
        options,
        queue_size=options.queue_size,
        momentum=options.momentum,
        alpha=options.alpha,
        negative_temperature=options.negative_temperature,
        negative_all_rank=options.negative_all_rank,
    )
    model = BlipForRetrievalTraining.from_pretrained(options.model, config=config, dtype=torch.float32)
    return prepare_for_training(model, options)


def finetune(options: RetrievalFinetuneOptions, arguments: BlipFinetuningArguments) -> dict[str, float]:
    """Fine-tunes a matcher, saves it as `BlipForImageTextRetrieval`, and evaluates it where there is a set for that.

    The folder itself opens as the matcher, here and in plain transformers.

    Args:
        options (`RetrievalFinetuneOptions`):
            What to train on.
        arguments (`BlipFinetuningArguments`):
            How.

    Returns:
        `dict[str, float]`: metrics of training, and of two-stage evaluation as `eval_...`.
    """
    if options.eval_data is not None:
        warn_of_training_data(options)
        check_num_candidates(options.k_test)
    model, processor = load_model(options), load_processor(options.model, options.image_size)
    image_size = image_size_of(model)
    eval_pairs = None if options.eval_data is None else evaluation_pairs(options, image_size)
    trainer = BlipContrastiveTrainer(
        model,
        arguments,
        train_dataset=training_pairs(options, image_size, arguments.seed),
        eval_dataset=None if eval_pairs is None else PairDataset(eval_pairs),
        data_collator=BlipPretrainingCollator(processor, max_length=MAX_LENGTH),
        processing_class=processor,
    )
    metrics = train_and_save(trainer)
    matcher = model.export_retriever()
    if trainer.is_world_process_zero():
        matcher.save_pretrained(arguments.output_dir)
    if eval_pairs is not None:
        result = evaluate_retrieval(
            matcher,
            processor,
            eval_pairs,
            k=options.k_test,
            image_batch_size=arguments.per_device_eval_batch_size,
        )
        metrics |= prefixed(result.metrics())
    return metrics


def evaluate(options: RetrievalEvaluateOptions) -> dict[str, float]:
    """Evaluates a matcher in two stages, and writes each query's ranked candidates where a file is named.

    Args:
        options (`RetrievalEvaluateOptions`):
            What to evaluate, and on what.

    Returns:
        `dict[str, float]`: recalls in both directions after re-ranking, and those of the cosines as `itc_...`.
    """
    model, processor = load_for_evaluation(BlipForImageTextRetrieval, options)
    result = evaluate_retrieval(
        model,
        processor,
        evaluation_pairs(options, image_size_of(model)),
        k=options.k_test,
        image_batch_size=options.batch_size,
        show_progress=not options.no_progress,
    )
    if options.output is not None:
        write_json(
            {
                "image_ids": result.image_ids,
                "texts": result.texts,
                "text_to_image": result.text_to_image.tolist(),
                "image_candidates": result.image_candidates.index.tolist(),
                "text_candidates": result.text_candidates.index.tolist(),
            },
            options.output,
        )
    return result.metrics()


__all__ = ["evaluate", "finetune", "load_model"]
