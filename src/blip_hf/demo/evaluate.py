# SPDX-License-Identifier: BSD-3-Clause
"""Evaluates captions and retrieval on held-out scenes, beside the chance level."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.collators import BlipPretrainingCollator
from ..data.encoded import EncodedPairs
from ..data.pairs import PairDataset
from ..data.scenes import Scenes
from ..evaluation.recall import chance_recalls, retrieval_recalls
from ..modeling.caption import BlipForConditionalGeneration
from ..modeling.retrieval import BlipForImageTextRetrieval
from ..processing_blip import BlipProcessor


@dataclass(frozen=True)
class Score:
    """A row of the table: the value of the model and of chance, in [0, 1], over a number of images or captions."""

    key: str
    label: str
    value: float
    chance: float
    num_cases: int


@dataclass(frozen=True)
class Evaluation:
    """Generated captions, scores, and the most frequent caption of training, which is the chance level of captions."""

    captions: list[str]
    scores: list[Score]
    blind_caption: str


@torch.no_grad()
def evaluate(
    captioner: BlipForConditionalGeneration,
    retriever: BlipForImageTextRetrieval,
    processor: BlipProcessor,
    scenes: Scenes,
    *,
    training_captions: Sequence[str],
) -> Evaluation:
    """Captions scenes and matches them with their captions. Both models are in evaluation mode and on one device."""
    pairs = EncodedPairs(PairDataset(scenes), BlipPretrainingCollator(processor))
    columns = {
        name: pairs.columns[name].to(captioner.device) for name in ("pixel_values", "input_ids", "attention_mask")
    }
    pixel_values, input_ids = columns["pixel_values"], columns["input_ids"]
    # In pre-training captions have no prompt.
    sequences = captioner.generate(pixel_values, do_sample=False, num_beams=1, max_new_tokens=input_ids.shape[1])
    captions = processor.post_process_captions(sequences)
    image_features = retriever.get_image_features(pixel_values).pooler_output  # (n, d)
    text_features = retriever.get_text_features(input_ids, columns["attention_mask"]).pooler_output  # (n, d)
    blind_caption = Counter(training_captions).most_common(1)[0][0]
    scores = [
        *caption_scores(captions, pairs.captions, blind_caption, known=set(training_captions)),
        *retrieval_scores(image_features @ text_features.T, pairs.captions),
    ]
    return Evaluation(captions, scores, blind_caption)


def caption_scores(
    captions: Sequence[str], references: Sequence[str], blind_caption: str, known: set[str]
) -> list[Score]:
    """Computes exact match, also of references that are not in training (`known`), and word accuracy."""
    blind = [blind_caption] * len(references)
    exact, blind_exact = (
        [text == reference for text, reference in zip(texts, references, strict=True)] for texts in (captions, blind)
    )
    words, blind_words = (
        [word_accuracy(text, reference) for text, reference in zip(texts, references, strict=True)]
        for texts in (captions, blind)
    )
    new = [hit for hit, reference in zip(exact, references, strict=True) if reference not in known]
    scores = [Score("caption_exact_match", "caption, exact match", _mean(exact), _mean(blind_exact), len(exact))]
    if new:
        # A caption of training is never equal to a new one.
        scores.append(Score("new_caption_exact_match", "... of captions not in training", _mean(new), 0.0, len(new)))
    return [
        *scores,
        Score("caption_word_accuracy", "caption, word accuracy", _mean(words), _mean(blind_words), len(words)),
    ]


def retrieval_scores(similarity: Tensor, captions: Sequence[str]) -> list[Score]:
    """Computes R@1 from similarities `(n, n)` of images and captions. A caption is correct for each image that has it."""
    relevance = torch.tensor([[first == second for second in captions] for first in captions])  # (n, n)
    recalls, chances = retrieval_recalls(similarity, relevance=relevance, ks=(1,)), chance_recalls(relevance, ks=(1,))
    labels = {"image_to_text_r@1": "image to caption, R@1", "text_to_image_r@1": "caption to image, R@1"}
    return [Score(key, label, recalls[key], chances[key], len(captions)) for key, label in labels.items()]


def word_accuracy(caption: str, reference: str) -> float:
    """Returns the share of words that are correct and in their place, of the longer of the two texts.

    Example:
        >>> word_accuracy("a red circle", "a red ring")
        0.6666666666666666
    """
    words, reference_words = caption.split(), reference.split()
    num_correct = sum(first == second for first, second in zip(words, reference_words, strict=False))
    return num_correct / max(len(words), len(reference_words))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


__all__ = ["Evaluation", "Score", "caption_scores", "evaluate", "retrieval_scores", "word_accuracy"]
