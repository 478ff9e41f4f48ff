# SPDX-License-Identifier: BSD-3-Clause
"""How well the demo's model captions and matches scenes it has never seen, beside what a blind model would reach."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..evaluation.recall import chance_recalls, retrieval_recalls
from ..modeling.pretraining import BlipForPreTraining
from ..processing_blip import BlipProcessor
from .pretrain import EncodedScenes


@dataclass(frozen=True)
class Score:
    """One row of the table.

    Args:
        key (`str`):
            Name in `metrics.json`.
        label (`str`):
            Name in the table.
        value (`float`):
            What the model reaches, in [0, 1].
        chance (`float`):
            What a model that does not look reaches, in [0, 1].
        num_cases (`int`):
            Number of images or captions that it is the mean over.
    """

    key: str
    label: str
    value: float
    chance: float
    num_cases: int


@dataclass(frozen=True)
class Evaluation:
    """Result of [`evaluate`].

    Args:
        captions (`list[str]`):
            What the model wrote, one an image.
        scores (`list[Score]`):
            The table.
        blind_caption (`str`):
            The most frequent caption of training, which the chance of captioning always answers.
    """

    captions: list[str]
    scores: list[Score]
    blind_caption: str


@torch.no_grad()
def evaluate(
    model: BlipForPreTraining,
    processor: BlipProcessor,
    held_out: EncodedScenes,
    training_captions: Sequence[str],
) -> Evaluation:
    """Captions and matches held-out scenes.

    Args:
        model ([`BlipForPreTraining`]):
            In evaluation mode.
        processor ([`BlipProcessor`]):
            Of the model.
        held_out (`EncodedScenes`):
            The scenes.
        training_captions (`Sequence[str]`):
            What the model has read.

    Returns:
        `Evaluation`: captions and scores.
    """
    longest = held_out.input_ids.shape[1]
    sequences = model.export_captioner().generate(
        held_out.pixel_values, do_sample=False, num_beams=1, max_new_tokens=longest
    )
    written = processor.post_process_captions(sequences)
    retriever = model.export_retriever()
    image_features = retriever.get_image_features(held_out.pixel_values)
    text_features = retriever.get_text_features(held_out.input_ids, held_out.attention_mask)
    blind_caption = Counter(training_captions).most_common(1)[0][0]
    scores = [
        *caption_scores(written, held_out.captions, blind_caption, known=set(training_captions)),
        *retrieval_scores(image_features @ text_features.T, held_out.captions),
    ]
    return Evaluation(written, scores, blind_caption)


def caption_scores(written: Sequence[str], true: Sequence[str], blind_caption: str, known: set[str]) -> list[Score]:
    """Exact match, of all captions and of those that were never read in training, and word accuracy.

    Args:
        written (`Sequence[str]`):
            What the model wrote.
        true (`Sequence[str]`):
            The captions of the scenes.
        blind_caption (`str`):
            What a model that does not look always writes.
        known (`set[str]`):
            Captions of training.

    Returns:
        `list[Score]`: two scores, or three if some caption is new.
    """
    blind = [blind_caption] * len(true)
    exact, blind_exact = ([a == b for a, b in zip(texts, true, strict=True)] for texts in (written, blind))
    words, blind_words = (
        [word_accuracy(a, b) for a, b in zip(texts, true, strict=True)] for texts in (written, blind)
    )
    new = [hit for hit, caption in zip(exact, true, strict=True) if caption not in known]
    scores = [Score("caption_exact_match", "caption, exact match", _mean(exact), _mean(blind_exact), len(exact))]
    if new:
        # A caption of training cannot be right where the true one is not of training.
        scores.append(Score("new_caption_exact_match", "... of captions new to it", _mean(new), 0.0, len(new)))
    return [
        *scores,
        Score("caption_word_accuracy", "caption, word accuracy", _mean(words), _mean(blind_words), len(words)),
    ]


def retrieval_scores(similarity: Tensor, captions: Sequence[str]) -> list[Score]:
    """R@1 both ways. A caption counts as right for each image that it is true of.

    Args:
        similarity (`torch.Tensor` of shape `(n, n)`):
            Contrastive similarities of images with captions.
        captions (`Sequence[str]`):
            The caption of each image.

    Returns:
        `list[Score]`: two scores.
    """
    relevance = torch.tensor([[first == second for second in captions] for first in captions])  # (n, n)
    recalls, chances = retrieval_recalls(similarity, relevance=relevance, ks=(1,)), chance_recalls(relevance, ks=(1,))
    labels = {"image_to_text_r@1": "image to caption, R@1", "text_to_image_r@1": "caption to image, R@1"}
    return [Score(key, label, recalls[key], chances[key], len(captions)) for key, label in labels.items()]


def word_accuracy(written: str, true: str) -> float:
    """Share of the words that are right and in their place, of the longer of the two captions.

    Args:
        written (`str`):
            A caption.
        true (`str`):
            What it should be; at least one word.

    Returns:
        `float`: in [0, 1].

    Example:
        >>> word_accuracy("a red circle", "a red ring")
        0.6666666666666666
    """
    written_words, true_words = written.split(), true.split()
    num_right = sum(first == second for first, second in zip(written_words, true_words, strict=False))
    return num_right / max(len(written_words), len(true_words))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


__all__ = ["Evaluation", "Score", "caption_scores", "evaluate", "retrieval_scores", "word_accuracy"]
