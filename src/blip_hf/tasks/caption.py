# SPDX-License-Identifier: BSD-3-Clause
"""Captioning (paper, section 5.2): fine-tune a captioner, and compare what it writes with what people wrote."""

import torch

from ..caption_settings import CaptionSettings
from ..configuration_blip import BlipConfig, BlipPreTrainingConfig
from ..data.collators import BlipCaptioningCollator
from ..data.pairs import PairDataset
from ..data.readers import group_captions
from ..evaluation.caption import CaptionResult, evaluate_captions, write_caption_results
from ..evaluation.caption_metrics import resolve_metrics
from ..modeling.caption import BlipForConditionalGeneration
from ..modeling.pretraining import BlipForPreTraining
from ..processing_blip import BlipProcessor
from ..training import BlipFinetuningArguments, BlipTrainer
from .base import (
    checkpoint_type,
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
from .options import CaptionEvaluateOptions, CaptionFinetuneOptions


def load_model(options: CaptionFinetuneOptions) -> BlipForConditionalGeneration:
    """Loads the captioner to start from, in training mode; that of a pre-training checkpoint too.

    Args:
        options (`CaptionFinetuneOptions`):
            Options of the command.

    Returns:
        `BlipForConditionalGeneration`: with float32 weights.
    """
    if checkpoint_type(options.model) == BlipPreTrainingConfig.model_type:
        config = read_config(BlipPreTrainingConfig, options)
        whole = BlipForPreTraining.from_pretrained(options.model, config=config, dtype=torch.float32)
        model = whole.export_captioner()
    else:
        config = read_config(BlipConfig, options)
        model = BlipForConditionalGeneration.from_pretrained(options.model, config=config, dtype=torch.float32)
    return prepare_for_training(model, options)


def finetune(options: CaptionFinetuneOptions, arguments: BlipFinetuningArguments) -> dict[str, float]:
    """Fine-tunes a captioner, saves it with its processor, and evaluates it where there is a set for that.

    Args:
        options (`CaptionFinetuneOptions`):
            What to train on.
        arguments (`BlipFinetuningArguments`):
            How.

    Returns:
        `dict[str, float]`: metrics of training, and of evaluation as `eval_...`.
    """
    if options.eval_data is not None:
        warn_of_training_data(options)
        resolve_metrics(
            options.metrics, options.tokenizer_of_metrics
        )  # before the long run that a failure would waste
    model, processor = load_model(options), load_processor(options.model, options.image_size)
    processor.caption_settings = CaptionSettings.for_finetuning(
        processor.caption_settings,
        prompt=options.prompt,
        num_beams=options.num_beams,
        max_length=options.max_length,
        min_length=options.min_length,
    )
    image_size = image_size_of(model)
    eval_pairs = None if options.eval_data is None else evaluation_pairs(options, image_size)
    trainer = BlipTrainer(
        model,
        arguments,
        train_dataset=training_pairs(options, image_size, arguments.seed),
        eval_dataset=None if eval_pairs is None else PairDataset(eval_pairs),
        data_collator=BlipCaptioningCollator(processor),
        processing_class=processor,
    )
    metrics = train_and_save(trainer)
    if eval_pairs is not None and trainer.is_world_process_zero():
        result = _evaluate(model, processor, eval_pairs, options, arguments.per_device_eval_batch_size)
        metrics |= prefixed(result.metrics)
    return metrics


def evaluate(options: CaptionEvaluateOptions) -> dict[str, float]:
    """Evaluates a captioner, and writes its captions where a file is named.

    Args:
        options (`CaptionEvaluateOptions`):
            What to evaluate, and on what.

    Returns:
        `dict[str, float]`: BLEU-1 to 4, ROUGE-L and CIDEr, and METEOR where Java is found.
    """
    model, processor = load_for_evaluation(BlipForConditionalGeneration, options)
    pairs = evaluation_pairs(options, image_size_of(model))
    result = _evaluate(
        model,
        processor,
        pairs,
        options,
        options.batch_size,
        repetition_penalty=options.repetition_penalty,
        show_progress=not options.no_progress,
    )
    if options.output is not None:
        write_caption_results(result.predictions, options.output)
    return {**result.metrics, "num_skipped": result.num_skipped}


def _evaluate(
    model: BlipForConditionalGeneration,
    processor: BlipProcessor,
    pairs: object,
    options: CaptionFinetuneOptions | CaptionEvaluateOptions,
    batch_size: int,
    **settings: object,
) -> CaptionResult:
    return evaluate_captions(
        model,
        processor,
        group_captions(pairs),
        prompt=options.prompt,
        num_beams=options.num_beams,
        max_length=options.max_length,
        min_length=options.min_length,
        batch_size=batch_size,
        tokenizer=options.tokenizer_of_metrics,
        metrics=options.metrics,
        **settings,
    )


__all__ = ["evaluate", "finetune", "load_model"]
