# SPDX-License-Identifier: BSD-3-Clause
"""What the loop measures: models on images they have never seen, and a filter against what is known of the web."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ..capfilt.filters import Rule, keep_mask
from ..data.readers import group_captions, load_pairs
from ..demo.evaluate import word_accuracy
from ..evaluation.caption import evaluate_captions
from ..evaluation.filtering import filter_metrics
from ..evaluation.retrieval import evaluate_retrieval
from ..modeling.caption import BlipForConditionalGeneration
from ..modeling.retrieval import BlipForImageTextRetrieval
from ..processing_blip import BlipProcessor
from .config import EvaluationSettings
from .sets import Truth, read_scores
from .stages import Figures


def measure_retrieval(folder: Path, pairs: Path, settings: EvaluationSettings, device: str) -> Figures:
    """Recalls of a matcher in both directions, by cosine (`itc_...`) and re-ranked.

    Args:
        folder (`Path`):
            The matcher.
        pairs (`Path`):
            The set.
        settings (`EvaluationSettings`):
            How.
        device (`str`):
            Where.

    Returns:
        `dict`: as [`~blip_hf.evaluation.retrieval.RetrievalResult.metrics`] names them.
    """
    matcher = BlipForImageTextRetrieval.from_pretrained(folder, dtype=torch.float32).to(device)
    processor = BlipProcessor.from_pretrained(folder)
    return evaluate_retrieval(
        matcher, processor, load_pairs(pairs), k=settings.k_test, image_batch_size=settings.batch_size
    ).metrics()


def measure_captions(
    folder: Path, pairs: Path, settings: EvaluationSettings, device: str, *, prompt: str | None, is_drawn: bool
) -> Figures:
    """How a captioner's captions compare with the images' own.

    Args:
        folder (`Path`):
            The captioner.
        pairs (`Path`):
            The set.
        settings (`EvaluationSettings`):
            How.
        device (`str`):
            Where.
        prompt (`str`, *optional*):
            What each caption starts with, as in the captioner's training.
        is_drawn (`bool`):
            Whether images are scenes, which have one right caption each.

    Returns:
        `dict`: exact match and word accuracy for scenes, otherwise the metrics of captioning.
    """
    captioner = BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).to(device)
    groups = group_captions(load_pairs(pairs))
    if is_drawn:
        references = {group["image_id"]: group["captions"][0] for group in groups}
        # Without captions nothing is compared, and no package of metrics needed.
        groups = [{**group, "captions": []} for group in groups]
    result = evaluate_captions(
        captioner,
        BlipProcessor.from_pretrained(folder),
        groups,
        prompt=prompt,
        num_beams=settings.num_beams,
        max_length=settings.max_length,
        min_length=settings.min_length,
        batch_size=settings.batch_size,
    )
    return scene_caption_figures(result.predictions, references) if is_drawn else result.metrics


def scene_caption_figures(written: Mapping[int, str], references: Mapping[int, str]) -> Figures:
    """Share of captions that are right, and of their words.

    Args:
        written (`Mapping[int, str]`):
            What the model wrote, by image.
        references (`Mapping[int, str]`):
            The right captions.

    Returns:
        `dict`: `caption_exact_match` and `caption_word_accuracy`.

    Example:
        >>> scene_caption_figures({0: "a red ring", 1: "a ring"}, {0: "a red ring", 1: "a star"})
        {'caption_exact_match': 0.5, 'caption_word_accuracy': 0.75}
    """
    pairs = [(caption, references[image_id]) for image_id, caption in written.items()]
    return {
        "caption_exact_match": sum(caption == true for caption, true in pairs) / len(pairs),
        "caption_word_accuracy": sum(word_accuracy(caption, true) for caption, true in pairs) / len(pairs),
    }


def measure_capfilt(run: Path, truth: Truth, rule: Rule) -> Figures:
    """Shares that a rule keeps of a CapFilt run, and how right it is where the truth is known.

    Args:
        run (`Path`):
            Folder of the run.
        truth (`Truth`):
            What is known of the web.
        rule (`Rule`):
            The rule.

    Returns:
        `dict`: by source (`web_...`, `synthetic_...`) the number of texts and the share kept; with labels the filter's
        precision, recall, recall of noise and ROC AUC, and the share that is right before it.
    """
    table = read_scores(run)
    mask = keep_mask(table, rule)
    scores = table[rule.by].to_numpy()
    sources, image_ids, texts = (table[name].to_pylist() for name in ("source", "image_id", "text"))
    figures: Figures = {}
    for source in ("web", "synthetic"):
        rows = [row for row, own in enumerate(sources) if own == source]
        if not rows:
            continue
        figures |= {f"{source}_texts": len(rows), f"{source}_kept": float(mask[rows].mean())}
        labels = [truth.is_right(source, image_ids[row], texts[row]) for row in rows]
        if None not in labels:
            metrics = filter_metrics(scores[rows], np.array(labels, dtype=int), kept=mask[rows])
            figures[f"{source}_right"] = metrics["num_right"] / len(rows)
            figures |= {
                f"{source}_{name}": metrics[name] for name in ("precision", "recall", "noise_recall", "roc_auc")
            }
    return figures


__all__ = ["measure_capfilt", "measure_captions", "measure_retrieval", "scene_caption_figures"]
