# SPDX-License-Identifier: BSD-3-Clause
"""A tiny model of each task in training mode, with a training batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from blip_hf import (
    BlipForConditionalGeneration,
    BlipForPreTraining,
    BlipForQuestionAnswering,
    BlipForRetrievalTraining,
    BlipForVisualReasoning,
)
from blip_hf.objectives import sample_hard_negatives
from tests.support.tiny_models import (
    DEC,
    tiny_batch,
    tiny_config,
    tiny_nlvr2_config,
    tiny_pretraining_config,
    tiny_retrieval_config,
)


def caption_batch() -> dict[str, Tensor]:
    batch = tiny_batch(first=DEC)
    return batch | {"labels": batch["input_ids"]}


def contrastive_batch() -> dict[str, Tensor]:
    """Three pairs, the first two with one image."""
    return tiny_batch() | {"image_ids": torch.tensor([4, 4, 5])}


def vqa_batch() -> dict[str, Tensor]:
    """One answer per question."""
    return tiny_batch() | {"labels": tiny_batch((4, 3, 5), seed=3)["input_ids"]}


def weighted_vqa_batch() -> dict[str, Tensor]:
    """Two answers to the first question, one to each of the others."""
    return tiny_batch() | {
        "labels": tiny_batch((4, 3, 5, 4), seed=3)["input_ids"],
        "answer_weights": torch.tensor([0.3, 0.7, 1.0, 1.0]),
        "answers_per_question": torch.tensor([2, 1, 1]),
    }


def nlvr2_batch() -> dict[str, Tensor]:
    """Pixels of shape `(3, 2, 3, 32, 32)`, with a sentence and a label per pair."""
    batch = tiny_batch()
    pairs = torch.stack([batch["pixel_values"], batch["pixel_values"].flip(0)], dim=1)
    return batch | {"pixel_values": pairs, "labels": torch.tensor([1, 0, 1])}


CONTRASTIVE_TASKS = ("pretrain", "retrieval")
TASK_MODELS: dict[str, tuple[type, Callable, Callable]] = {
    "caption": (BlipForConditionalGeneration, tiny_config, caption_batch),
    "vqa": (BlipForQuestionAnswering, tiny_config, vqa_batch),
    "nlvr2": (BlipForVisualReasoning, tiny_nlvr2_config, nlvr2_batch),
    "pretrain": (BlipForPreTraining, tiny_pretraining_config, contrastive_batch),
    "retrieval": (BlipForRetrievalTraining, tiny_retrieval_config, contrastive_batch),
}


def make_model_and_batch(task: str) -> tuple[torch.nn.Module, dict[str, Tensor]]:
    model_class, make_config, make_batch = TASK_MODELS[task]
    return model_class(make_config()).train(), make_batch()


def hardest_negatives(logits: Tensor, positives: Tensor, generator=None) -> tuple[Tensor, Tensor]:
    """Replaces `sample_hard_negatives` by the most probable negative, which is the same on all devices."""
    _, has_negative = sample_hard_negatives(logits, positives, generator)
    return logits.masked_fill(positives, float("-inf")).argmax(dim=-1), has_negative
