# SPDX-License-Identifier: BSD-3-Clause
"""Captioning, as the paper evaluates it (section 5.2): captions by beam search, compared with those of people."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tqdm.auto import tqdm

from ..captioner import BlipCaptioner
from ..data.pairs import SkipReporter
from ..data.readers.nocaps import NoCapsImage
from ..data.readers.records import CaptionGroup
from ..files import write_json
from ..modeling.caption import BlipForConditionalGeneration
from ..processing_blip import BlipProcessor
from .caption_metrics import Metric, Tokenizer, caption_metrics, caption_metrics_by_domain, resolve_metrics
from .features import evaluating


@dataclass(frozen=True)
class CaptionResult:
    """What a model wrote about a set of images, and how near it came to what people wrote.

    Args:
        metrics (`dict[str, float]`):
            As of [`~blip_hf.evaluation.caption_metrics.caption_metrics`], over the images that have captions; empty
            where none has.
        metrics_by_domain (`dict[str, dict[str, float]]`):
            The same of each domain and of the `"entire"` set, where images have domains, as those of NoCaps.
        predictions (`dict[int | str, str]`):
            By id of the image, its caption without the prompt.
        num_skipped (`int`):
            Images that were left out, as they could not be read.
    """

    metrics: dict[str, float]
    metrics_by_domain: dict[str, dict[str, float]] = field(repr=False)
    predictions: dict[int | str, str] = field(repr=False)
    num_skipped: int


def evaluate_captions(
    model: BlipForConditionalGeneration,
    processor: BlipProcessor,
    groups: Sequence[CaptionGroup | NoCapsImage],
    *,
    prompt: str | None = "a picture of ",
    num_beams: int = 3,
    max_length: int = 20,
    min_length: int = 5,
    repetition_penalty: float = 1.0,
    batch_size: int = 32,
    tokenizer: Tokenizer = "treebank",
    metrics: Sequence[Metric] | None = None,
    show_progress: bool = False,
) -> CaptionResult:
    """Writes a caption for each image and compares it with the image's own.

    The defaults are those of salesforce/BLIP `configs/caption_coco.yaml`; `configs/nocaps.yaml` has the same with a
    repetition penalty of 1.1. Captions are compared as they are, whatever their case and punctuation.

    Args:
        model (`BlipForConditionalGeneration`):
            The model; its mode, device and dtype are left as they are.
        processor (`BlipProcessor`):
            The processor it was trained with.
        groups (sequence of `CaptionGroup`):
            Images with all of their captions: [`~blip_hf.data.readers.group_captions`] of pairs, or what
            [`~blip_hf.data.readers.load_nocaps`] reads. One without captions is written about too.
        prompt (`str`, *optional*, defaults to `"a picture of "`):
            What each caption starts with, or `None`. It is no part of the predictions.
        num_beams (`int`, *optional*, defaults to 3):
            Beams of the search; 1 is greedy.
        max_length (`int`, *optional*, defaults to 20):
            Most tokens, `[DEC]`, the prompt and `[SEP]` included: with BLIP's prompt 16 are left for the caption.
        min_length (`int`, *optional*, defaults to 5):
            Least tokens, counted likewise: with BLIP's prompt one before `[SEP]`.
        repetition_penalty (`float`, *optional*, defaults to 1.0):
            Above 1, a token that is already there is less likely to come again.
        batch_size (`int`, *optional*, defaults to 32):
            Images a batch. It changes no caption but by rounding.
        tokenizer (`"treebank"` or `"ptb"`, *optional*, defaults to `"treebank"`):
            As of [`~blip_hf.evaluation.caption_metrics.caption_metrics`].
        metrics (sequence of `str`, *optional*):
            As of [`~blip_hf.evaluation.caption_metrics.caption_metrics`].
        show_progress (`bool`, *optional*, defaults to `False`):
            Whether to show a bar.

    Returns:
        `CaptionResult`: metrics and captions. An image that cannot be read is left out of both, with a warning.

    Raises:
        ValueError: If there are no images or none can be read, two have the same id, or a metric cannot be computed.
        ImportError: If a package of the metrics is not installed.

    Example:
        >>> pairs = load_pairs("dataset_coco.json", image_root="coco", split="test")  # doctest: +SKIP
        >>> result = evaluate_captions(model, processor, group_captions(pairs))  # doctest: +SKIP
        >>> result.metrics["cider"], result.predictions[391895]  # doctest: +SKIP
        (1.333, 'a man riding a motorcycle down a dirt road')
    """
    if any(group["captions"] for group in groups):
        metrics = resolve_metrics(metrics, tokenizer)  # before the long run that a failure would waste
    with evaluating(model):
        captioner = BlipCaptioner(
            model,
            processor,
            prompt=prompt,
            batch_size=batch_size,
            num_beams=num_beams,
            max_length=max_length,
            min_length=min_length,
            repetition_penalty=repetition_penalty,
        )
        written = _write(captioner, groups, show_progress)
    entire, by_domain = _judge(written, tokenizer, metrics)
    predictions = {image_id: own.caption for image_id, own in written.items()}
    return CaptionResult(entire, by_domain, predictions, num_skipped=len(groups) - len(written))


@dataclass(frozen=True)
class _Written:
    """A caption, and what is known about its image."""

    caption: str
    references: list[str]
    domain: str | None


def _write(
    captioner: BlipCaptioner, groups: Sequence[CaptionGroup | NoCapsImage], show_progress: bool
) -> dict[int | str, _Written]:
    """What was written about each image that could be read, by id."""
    written: dict[int | str, _Written] = {}
    skips = SkipReporter()
    starts = range(0, len(groups), captioner.batch_size)
    for start in tqdm(starts, desc="Captioning", disable=not show_progress):
        batch = [groups[number] for number in range(start, min(start + captioner.batch_size, len(groups)))]
        captions = captioner.caption([group["image"] for group in batch], on_error="skip")
        for group, caption in zip(batch, captions, strict=True):
            image_id = group["image_id"]
            if caption.error is not None:
                skips.report(caption.error)
                continue
            if image_id in written:
                raise ValueError(f"Two images have the id {image_id!r}. Join their captions with `group_captions`.")
            written[image_id] = _Written(caption.text, group["captions"], group.get("domain"))
    if not written:
        raise ValueError(
            f"None of {len(groups)} images could be read. Check that their paths start from the right folder"
            " (`image_root`)."
        )
    return written


def _judge(
    written: Mapping[int | str, _Written], tokenizer: Tokenizer, metrics: Sequence[Metric] | None
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Metrics of the captions whose images have references, and those of each domain where all have one."""
    judged = {image_id: own for image_id, own in written.items() if own.references}
    if not judged:
        return {}, {}
    captions = {image_id: own.caption for image_id, own in judged.items()}
    references = {image_id: own.references for image_id, own in judged.items()}
    domains = {image_id: own.domain for image_id, own in judged.items()}
    if None in domains.values():
        return caption_metrics(captions, references, tokenizer=tokenizer, metrics=metrics), {}
    by_domain = caption_metrics_by_domain(captions, references, domains, tokenizer=tokenizer, metrics=metrics)
    return by_domain["entire"], by_domain


def write_caption_results(predictions: Mapping[int | str, str], path: str | os.PathLike[str]) -> None:
    """Writes captions as the servers of COCO and NoCaps take them: `[{"image_id": ..., "caption": ...}]`.

    The file appears under its name only when it is complete.

    Args:
        predictions (mapping of id to `str`):
            The caption of each image, under the ids of the data set.
        path (`str` or `Path`):
            The file. COCO wants it called `captions_{split}_{name}_results.json`.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_caption_results({42: "a dog"}, Path(folder, "results.json"))
        ...     Path(folder, "results.json").read_text()
        '[{"image_id": 42, "caption": "a dog"}]'
    """
    write_json([{"image_id": image_id, "caption": caption} for image_id, caption in predictions.items()], path)


__all__ = ["CaptionResult", "evaluate_captions", "write_caption_results"]
