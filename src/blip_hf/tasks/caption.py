# SPDX-License-Identifier: BSD-3-Clause
"""Captioning (paper, section 5.2): fine-tunes a captioner, and compares its captions with human ones."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..caption_settings import CaptionSettings, caption_option
from . import base, finetuning
from .base import PairEvaluateOptions, PairFinetuneOptions
from .loading import add_loading_skips
from .options import option
from .source import Source


if TYPE_CHECKING:
    from ..modeling.caption import BlipForConditionalGeneration
    from ..training import BlipFinetuningArguments


@dataclass(kw_only=True)
class CaptionOptions:
    """How captions are generated and compared with human ones."""

    prompt: str | None = caption_option("prompt")
    num_beams: int | None = caption_option("num_beams")
    max_length: int | None = caption_option("max_length")
    min_length: int | None = caption_option("min_length")
    metrics: list[str] | None = option(
        None, "Some of bleu, rouge_l, cider, meteor and spice (default: the first three, and meteor with Java)", "NAME"
    )
    tokenizer_of_metrics: str = option(
        "treebank", "Tokenizer of the metrics: treebank, or ptb, the official one, which needs Java", "NAME"
    )

    def caption_settings(self) -> dict[str, Any]:
        """Returns the options that are fields of [`CaptionSettings`]; `None` stands for the checkpoint's own."""
        return {name: getattr(self, name) for name in ("prompt", "num_beams", "max_length", "min_length")}

    def metric_settings(self) -> dict[str, Any]:
        """Returns the metrics and their tokenizer, which [`~blip_hf.evaluation.caption_metrics.resolve_metrics`] checks."""
        return {"metrics": self.metrics, "tokenizer": self.tokenizer_of_metrics}


@dataclass(kw_only=True)
class FinetuneOptions(CaptionOptions, PairFinetuneOptions):
    """Options of fine-tuning a captioner."""


@dataclass(kw_only=True)
class EvaluateOptions(CaptionOptions, PairEvaluateOptions):
    """Options of evaluating a captioner."""

    repetition_penalty: float | None = caption_option("repetition_penalty")


def load_model(options: FinetuneOptions) -> "BlipForConditionalGeneration":
    """Loads the captioner to start from, also that of a pre-training checkpoint, with float32 weights."""
    from ..modeling.caption import BlipForConditionalGeneration
    from ..modeling.pretraining import BlipForPreTraining

    if base.checkpoint_type(options.model) == BlipForPreTraining.config_class.model_type:
        model = base.load_for_training(BlipForPreTraining, options).export_captioner()
    else:
        model = base.load_for_training(BlipForConditionalGeneration, options)
    return base.prepare_for_training(model, options)


def finetune(options: FinetuneOptions, arguments: "BlipFinetuningArguments") -> dict[str, float]:
    """Fine-tunes a captioner, saves it with its processor, prompt and lengths, and evaluates it if there is a set for that.

    Args:
        options (`FinetuneOptions`):
            Model, data and captions.
        arguments (`BlipFinetuningArguments`):
            Arguments of the trainer.

    Returns:
        `dict[str, float]`: metrics of training, and of evaluation as `eval_...`.
    """
    from ..data.collators import BlipCaptioningCollator
    from ..data.pairs import PairDataset
    from ..training.task_metrics import caption_evaluation

    finetuning.check_options(options, arguments)
    evaluation = None
    if options.eval_data is not None:
        evaluation = caption_evaluation(  # fails here rather than after training
            **options.metric_settings(), **options.caption_settings()
        )
    model, processor = load_model(options), base.load_processor(options.model, options.image_size)
    processor.caption_settings = CaptionSettings.for_finetuning(
        processor.caption_settings, **options.caption_settings()
    )

    return finetuning.run_finetuning(
        options,
        arguments,
        model=model,
        processor=processor,
        read_records=Source.read_pairs,
        dataset_class=PairDataset,
        collator=BlipCaptioningCollator(processor),
        evaluation=evaluation,
    )


def evaluate(options: EvaluateOptions) -> dict[str, float]:
    """Evaluates a captioner, and writes its captions if the options name a file.

    Args:
        options (`EvaluateOptions`):
            Model, data and captions.

    Returns:
        `dict[str, float]`: BLEU-1 to 4, ROUGE-L and CIDEr, METEOR if Java is installed, and `num_skipped`.
    """
    from ..data.readers import group_captions
    from ..data.readers.usable import recorded_files
    from ..evaluation.caption import evaluate_captions, write_caption_results
    from ..modeling.caption import BlipForConditionalGeneration

    model, processor = base.load_for_evaluation(BlipForConditionalGeneration, options)
    with recorded_files() as files:
        pairs = options.evaluation_source().read_pairs(base.image_size_of(model))
    result = evaluate_captions(
        model,
        processor,
        group_captions(pairs),
        **options.caption_settings(),
        repetition_penalty=options.repetition_penalty,
        batch_size=options.batch_size,
        **options.metric_settings(),
        num_workers=options.workers,
        show_progress=not options.no_progress,
    )
    if options.output is not None:
        write_caption_results(result.predictions, options.output)
    return add_loading_skips({**result.metrics, "num_skipped_by_reason": result.num_skipped_by_reason}, files)


__all__ = ["EvaluateOptions", "FinetuneOptions", "evaluate", "finetune", "load_model"]
