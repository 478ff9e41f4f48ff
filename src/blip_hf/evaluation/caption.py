# SPDX-License-Identifier: BSD-3-Clause
"""Captioning evaluation (BLIP, section 5.2): captions by beam search, compared with reference captions."""

import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from tqdm.auto import tqdm

from ..caption_settings import CaptionSettings
from ..captioner import BlipCaptioner, Caption
from ..data.pairs import SkipReporter
from ..data.readers.nocaps import NoCapsImage
from ..data.readers.records import CaptionGroup
from ..data.skips import image_reason
from ..distributed import gather_objects, rank, world_size
from ..files import write_json
from ..finite import NotFiniteError, require_finite_results
from ..modeling.caption import BlipForConditionalGeneration
from ..processing_blip import BlipProcessor
from .caption_metrics import Metric, Tokenizer, caption_metrics, caption_metrics_by_domain, resolve_metrics
from .defaults import BATCH_SIZE
from .features import evaluating


@dataclass(frozen=True)
class CaptionResult:
    """Captions of a model and their metrics.

    Args:
        metrics (`dict[str, float]`):
            [`~blip_hf.evaluation.caption_metrics.caption_metrics`] of the images with references; empty if there are none.
        metrics_by_domain (`dict[str, dict[str, float]]`):
            The same for each domain and the `"entire"` set if images have domains, as in NoCaps.
        predictions (`dict[int | str, str]`):
            Caption by image id, without the prompt.
        num_skipped (`int`):
            Images that could not be read.
        num_skipped_by_reason (`dict[str, int]`):
            The same by reason, as in [`~blip_hf.data.readers`].
    """

    metrics: dict[str, float]
    metrics_by_domain: dict[str, dict[str, float]] = field(repr=False)
    predictions: dict[int | str, str] = field(repr=False)
    num_skipped: int
    num_skipped_by_reason: dict[str, int] = field(default_factory=dict)


def evaluate_captions(
    model: BlipForConditionalGeneration,
    processor: BlipProcessor,
    groups: Sequence[CaptionGroup | NoCapsImage],
    *,
    prompt: str | None = None,
    num_beams: int | None = None,
    max_length: int | None = None,
    min_length: int | None = None,
    repetition_penalty: float | None = None,
    batch_size: int = BATCH_SIZE,
    tokenizer: Tokenizer = "treebank",
    metrics: Sequence[Metric] | None = None,
    num_workers: int = 0,
    show_progress: bool = False,
) -> CaptionResult:
    """Captions each image and compares the caption with the references. Unreadable images are skipped with a warning.

    Prompt and search settings default to those of the checkpoint (`processor.caption_settings`). For NoCaps,
    salesforce/BLIP `configs/nocaps.yaml` sets `repetition_penalty=1.1`. Under `torch.distributed` each process captions
    a share of the images, and all return the same result.

    Args:
        model (`BlipForConditionalGeneration`):
            The model; its mode, device and dtype are kept.
        processor (`BlipProcessor`):
            The processor it was trained with.
        groups (sequence of `CaptionGroup`):
            Images with all of their references: [`~blip_hf.data.readers.group_captions`] of pairs, or the output of
            [`~blip_hf.data.readers.load_nocaps`]. An image without references is captioned too.
        prompt (`str`, *optional*):
            Text that each caption starts with; it is removed from the predictions. `""` for none.
        num_beams (`int`, *optional*):
            Beams of the search; 1 is greedy.
        max_length (`int`, *optional*):
            Maximum number of tokens, including `[DEC]`, the prompt and `[SEP]`.
        min_length (`int`, *optional*):
            Minimum number of tokens, including `[DEC]` and the prompt.
        repetition_penalty (`float`, *optional*):
            Values above 1 make repeated tokens less likely.
        batch_size (`int`, *optional*, defaults to 32):
            Images per batch.
        tokenizer (`"treebank"` or `"ptb"`, *optional*, defaults to `"treebank"`):
            As in [`~blip_hf.evaluation.caption_metrics.caption_metrics`].
        metrics (sequence of `str`, *optional*):
            As in [`~blip_hf.evaluation.caption_metrics.caption_metrics`].
        num_workers (`int`, *optional*, defaults to 0):
            Threads that read images ahead of the model.
        show_progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.

    Returns:
        `CaptionResult`: metrics and captions.

    Raises:
        ValueError: If there are no readable images, two have the same id, a setting is out of range, or a metric cannot be
            computed.
        ImportError: If a package of the metrics is not installed.

    Example:
        >>> pairs = load_pairs("dataset_coco.json", image_root="coco", split="test")  # doctest: +SKIP
        >>> result = evaluate_captions(model, processor, group_captions(pairs))  # doctest: +SKIP
        >>> result.metrics["cider"], result.predictions[391895]  # doctest: +SKIP
        (1.333, 'a man riding a motorcycle down a dirt road')
    """
    if any(group["captions"] for group in groups):
        metrics = resolve_metrics(metrics, tokenizer)  # raises errors before the long run
    settings = CaptionSettings.resolve(
        processor.caption_settings,
        prompt=prompt,
        num_beams=num_beams,
        max_length=max_length,
        min_length=min_length,
        repetition_penalty=repetition_penalty,
    )
    with evaluating(model):
        captioner = BlipCaptioner(
            model,
            processor,
            prompt=settings.prompt,
            batch_size=batch_size,
            num_workers=num_workers,
            num_beams=settings.num_beams,
            max_length=settings.max_length,
            min_length=settings.min_length,
            repetition_penalty=settings.repetition_penalty,
        )
        written, reasons = _write(captioner, groups, show_progress)
    entire, by_domain = _judge(written, tokenizer, metrics)
    predictions = {image_id: own.caption for image_id, own in written.items()}
    return CaptionResult(entire, by_domain, predictions, len(groups) - len(written), dict(reasons))


@dataclass(frozen=True)
class _Written:
    """A caption with the references and the domain of its image."""

    caption: str
    references: list[str]
    domain: str | None


def _write(
    captioner: BlipCaptioner, groups: Sequence[CaptionGroup | NoCapsImage], show_progress: bool
) -> tuple[dict[int | str, _Written], Counter[str]]:
    """Captions the readable images, by id, in the order of `groups`, and counts the others by reason."""
    reasons: list[str] = []
    own: list[tuple[int, int | str, _Written]] = []
    skips = SkipReporter()
    numbers = range(rank(), len(groups), world_size())
    described: deque[tuple[int, dict[str, Any]]] = deque()  # of the images that the captioner has taken

    def images() -> Iterator[Any]:
        for number in numbers:
            group = groups[number]
            described.append((number, {name: value for name, value in group.items() if name != "image"}))
            yield group["image"]

    captions = _naming_ids(captioner.iter_captions(images(), on_error="skip"), groups, numbers)
    is_shown = show_progress and rank() == 0
    for caption in tqdm(captions, desc="Captioning", total=len(numbers), disable=not is_shown):
        number, group = described.popleft()
        if caption.error is not None:
            skips.report(caption.error)
            reasons.append(image_reason(caption.error_kind))
            continue
        own.append((number, group["image_id"], _Written(caption.text, group["captions"], group.get("domain"))))
    written: dict[int | str, _Written] = {}
    for _, image_id, caption in sorted(gather_objects(own), key=itemgetter(0)):
        if image_id in written:
            raise ValueError(f"Two images have the id {image_id!r}. Join their captions with `group_captions`.")
        written[image_id] = caption
    if not written:
        raise ValueError(
            f"None of {len(groups)} images could be read. Check that their paths start from the right folder"
            " (`image_root`)."
        )
    return written, Counter(gather_objects(reasons))


def _naming_ids(
    captions: Iterator[Caption], groups: Sequence[CaptionGroup | NoCapsImage], numbers: Sequence[int]
) -> Iterator[Caption]:
    """Names images by id in the error for results that are not finite."""
    try:
        yield from captions
    except NotFiniteError as error:
        if not error.images:
            raise
        require_finite_results([False] * len(error.images), [groups[numbers[i]]["image_id"] for i in error.images])


def _judge(
    written: Mapping[int | str, _Written], tokenizer: Tokenizer, metrics: Sequence[Metric] | None
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Returns the metrics of images with references, and those by domain if all of these have one."""
    judged = {image_id: own for image_id, own in written.items() if own.references}
    if not judged:
        return {}, {}
    captions = {image_id: own.caption for image_id, own in judged.items()}
    references = {image_id: own.references for image_id, own in judged.items()}
    domains = {image_id: own.domain for image_id, own in judged.items() if own.domain is not None}
    if len(domains) < len(judged):
        return caption_metrics(captions, references, tokenizer=tokenizer, metrics=metrics), {}
    by_domain = caption_metrics_by_domain(captions, references, domains, tokenizer=tokenizer, metrics=metrics)
    return by_domain["entire"], by_domain


def write_caption_results(predictions: Mapping[int | str, str], path: str | os.PathLike[str]) -> None:
    """Writes captions in the format of the COCO and NoCaps servers. The file appears only when it is complete.

    COCO expects the name `captions_{split}_{name}_results.json`.

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
