# SPDX-License-Identifier: BSD-3-Clause
"""Captioning (paper, section 5.2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..caption_settings import CaptionSettings, caption_option
from .base import (
    FinetuningRun,
    PairEvaluateOptions,
    PairFinetuneOptions,
    checkpoint_type,
    given_options,
    load_for_evaluation,
    load_for_training,
    load_pair_records,
    prepare_for_training,
    run_finetuning,
)


if TYPE_CHECKING:
    from ..evaluation.caption import CaptionResult
    from ..modeling.caption import BlipForConditionalGeneration
    from ..processing_blip import BlipProcessor
    from ..training import BlipFinetuningArguments


@dataclass(kw_only=True)
class CaptionOptions:
    """How captions are written and scored."""

    prompt: str | None = caption_option("prompt")
    num_beams: int | None = caption_option("num_beams")
    max_length: int | None = caption_option("max_length")
    min_length: int | None = caption_option("min_length")
    metrics: list[Literal["bleu", "rouge_l", "cider", "meteor", "spice"]] | None = field(
        default=None,
        metadata={
            "help": "Any of bleu, rouge_l, cider, meteor and spice (default: the first three, and meteor if Java is"
            " installed)",
            "metavar": "METRIC",
        },
    )
    tokenizer_of_metrics: Literal["treebank", "ptb"] = field(
        default="treebank",
        metadata={"help": "Tokenizer of the metrics; ptb, the official one, needs Java"},
    )

    def given_settings(self) -> dict[str, Any]:
        """The caption settings that are given, by name; the checkpoint has the others."""
        names = ("prompt", "num_beams", "max_length", "min_length")
        return given_options(**{name: getattr(self, name) for name in names})


@dataclass(kw_only=True)
class FinetuneOptions(CaptionOptions, PairFinetuneOptions):
    """Options of the fine-tuning of a captioner."""


@dataclass(kw_only=True)
class EvaluateOptions(CaptionOptions, PairEvaluateOptions):
    """Options of the evaluation of a captioner."""

    repetition_penalty: float | None = caption_option("repetition_penalty")

    def given_settings(self) -> dict[str, Any]:
        """The caption settings that are given, by name; the checkpoint has the others."""
        return super().given_settings() | given_options(repetition_penalty=self.repetition_penalty)


def load_model(options: FinetuneOptions) -> "BlipForConditionalGeneration":
    """Loads a captioner, or that of a pre-training checkpoint, for training."""
    from ..modeling.caption import BlipForConditionalGeneration
    from ..modeling.pretraining import BlipForPreTraining

    if checkpoint_type(options.model) == BlipForPreTraining.config_class.model_type:
        model = load_for_training(BlipForPreTraining, options).export_captioner()
    else:
        model = load_for_training(BlipForConditionalGeneration, options)
    return prepare_for_training(model, options)


def finetune(options: FinetuneOptions, arguments: "BlipFinetuningArguments") -> dict[str, float]:
    """Fine-tunes a captioner, saves it with its processor and caption settings, and evaluates it on `eval_data`.

    Args:
        options (`FinetuneOptions`):
            The checkpoint, the data and the prompt.
        arguments ([`BlipFinetuningArguments`]):
            Arguments of the trainer, such as `BlipFinetuningArguments.for_task("caption", output_dir=...)`.

    Returns:
        `dict[str, float]`: metrics of the training, and those of the evaluation as `eval_...`.
    """
    from ..data.collators import BlipCaptioningCollator
    from ..data.pairs import PairDataset
    from ..evaluation.caption_metrics import resolve_metrics

    if options.eval_data is not None:
        resolve_metrics(options.metrics, options.tokenizer_of_metrics)  # a mistake shows before the training

    def set_up_processor(processor: "BlipProcessor") -> None:
        own = processor.caption_settings
        processor.caption_settings = CaptionSettings.for_finetuning(own, **options.given_settings())

    def evaluate_run(run: FinetuningRun) -> dict[str, float]:
        return _metrics(_evaluate(run.model, run.processor, run.eval_records, options, batch_size=run.batch_size))

    return run_finetuning(
        options,
        arguments,
        load_model=load_model,
        load_records=load_pair_records,
        dataset_class=PairDataset,
        make_collator=BlipCaptioningCollator,
        evaluate=evaluate_run,
        set_up_processor=set_up_processor,
    )


def evaluate(options: EvaluateOptions) -> dict[str, float]:
    """Evaluates a captioner, and writes its captions to `output` if that is given.

    Returns:
        `dict[str, float]`: BLEU-1 to 4, ROUGE-L, CIDEr, METEOR if Java is installed, and `num_skipped`.
    """
    from ..evaluation.caption import write_caption_results
    from ..modeling.caption import BlipForConditionalGeneration

    model, processor = load_for_evaluation(BlipForConditionalGeneration, options)
    records = load_pair_records(options.evaluation_source(), options, model.config.vision_config.image_size)
    result = _evaluate(
        model,
        processor,
        records,
        options,
        batch_size=options.batch_size,
        show_progress=not options.no_progress,
    )
    if options.output is not None:
        write_caption_results(result.predictions, options.output)
    return _metrics(result)


def _evaluate(
    model: "BlipForConditionalGeneration",
    processor: "BlipProcessor",
    records: Sequence[Mapping[str, Any]],
    options: CaptionOptions,
    **settings: Any,
) -> "CaptionResult":
    from ..data.readers import group_captions
    from ..evaluation.caption import evaluate_captions

    return evaluate_captions(
        model,
        processor,
        group_captions(records),
        tokenizer=options.tokenizer_of_metrics,
        metrics=options.metrics,
        **options.given_settings(),
        **settings,
    )


def _metrics(result: "CaptionResult") -> dict[str, float]:
    return {**result.metrics, "num_skipped": result.num_skipped}


__all__ = ["EvaluateOptions", "FinetuneOptions", "evaluate", "finetune", "load_model"]
