# SPDX-License-Identifier: BSD-3-Clause
"""Evaluation in the loop: models on held-out images, and the filter against labels of the web set."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

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
from .stages import Metrics


_Id = TypeVar("_Id")


def measure_retrieval(folder: Path, pairs: Path, settings: EvaluationSettings, device: torch.device) -> Metrics:
    """Computes the recalls of a matcher in both directions, by cosine (`itc_...`) and re-ranked."""
    matcher = BlipForImageTextRetrieval.from_pretrained(folder, dtype=torch.float32).to(device)
    processor = BlipProcessor.from_pretrained(folder)
    return evaluate_retrieval(
        matcher,
        processor,
        load_pairs(pairs, allow_outside=True),
        k=settings.k_test,
        image_batch_size=settings.batch_size,
    ).metrics()


def measure_captions(
    folder: Path, pairs: Path, settings: EvaluationSettings, device: torch.device, *, is_drawn: bool
) -> Metrics:
    """Evaluates a captioner: exact match and word accuracy for scenes, otherwise the metrics of captioning."""
    captioner = BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).to(device)
    processor = BlipProcessor.from_pretrained(folder)
    chosen = settings.caption_settings(processor.caption_settings)
    groups = group_captions(load_pairs(pairs, allow_outside=True))
    if is_drawn:
        references = {group["image_id"]: group["captions"][0] for group in groups}
        # Without references, no package of metrics is needed.
        groups = [{**group, "captions": []} for group in groups]
    result = evaluate_captions(
        captioner,
        processor,
        groups,
        prompt=chosen.prompt,
        num_beams=chosen.num_beams,
        max_length=chosen.max_length,
        min_length=chosen.min_length,
        batch_size=settings.batch_size,
    )
    return scene_caption_metrics(result.predictions, references) if is_drawn else result.metrics


def scene_caption_metrics(written: Mapping[_Id, str], references: Mapping[_Id, str]) -> Metrics:
    """Computes exact match and word accuracy by image.

    Example:
        >>> scene_caption_metrics({0: "a red ring", 1: "a ring"}, {0: "a red ring", 1: "a star"})
        {'caption_exact_match': 0.5, 'caption_word_accuracy': 0.75}
    """
    pairs = [(caption, references[image_id]) for image_id, caption in written.items()]
    return {
        "caption_exact_match": sum(caption == true for caption, true in pairs) / len(pairs),
        "caption_word_accuracy": sum(word_accuracy(caption, true) for caption, true in pairs) / len(pairs),
    }


def measure_capfilt(run: Path, truth: Truth, rule: Rule) -> Metrics:
    """Computes the share of texts that a rule keeps, and with labels the metrics of the filter, by source."""
    table = read_scores(run)
    mask = keep_mask(table, rule)
    scores = table[rule.by].to_numpy()
    sources, image_ids, texts = (table[name].to_pylist() for name in ("source", "image_id", "text"))
    metrics: Metrics = {}
    for source in ("web", "synthetic"):
        rows = [row for row, own in enumerate(sources) if own == source]
        if not rows:
            continue
        metrics |= {f"{source}_texts": len(rows), f"{source}_kept": float(mask[rows].mean())}
        labels = [truth.is_right(source, image_ids[row], texts[row]) for row in rows]
        if None not in labels:
            judged = filter_metrics(scores[rows], np.array(labels, dtype=int), kept=mask[rows])
            metrics[f"{source}_right"] = sum(map(bool, labels)) / len(rows)
            metrics |= {
                f"{source}_{name}": judged[name] for name in ("precision", "recall", "noise_recall", "roc_auc")
            }
    return metrics


__all__ = ["measure_capfilt", "measure_captions", "measure_retrieval", "scene_caption_metrics"]
