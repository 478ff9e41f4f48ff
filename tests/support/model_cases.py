# SPDX-License-Identifier: BSD-3-Clause
"""Each model class with a tiny configuration and a batch, for checks that hold for all of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from blip_hf import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForPreTraining,
    BlipForQuestionAnswering,
    BlipForRetrievalTraining,
    BlipForVisualReasoning,
    BlipModel,
    BlipTextLMHeadModel,
    BlipTextModel,
    BlipVisionModel,
)
from tests.support.batches import caption_batch, nlvr2_batch, vqa_batch
from tests.support.tiny_models import (
    VISION,
    seeded_generator,
    tiny_batch,
    tiny_config,
    tiny_nlvr2_config,
    tiny_pretraining_config,
    tiny_retrieval_config,
)


@dataclass(frozen=True)
class ModelCase:
    """A model class, a function that makes its configuration, and a function that makes its batch."""

    model_class: type[PreTrainedModel]
    make_config: Callable[[], Any]
    make_batch: Callable[[], dict[str, Any]]

    def build(self, seed: int = 0) -> PreTrainedModel:
        """A model in evaluation mode with weights of one seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.model_class(self.make_config()).eval()


def matching_batch() -> dict[str, Tensor]:
    return tiny_batch() | {"labels": torch.tensor([1, 0, 1])}


def pairs_batch() -> dict[str, Any]:
    """Pairs and the generator of their hard negatives."""
    return tiny_batch() | {"generator": seeded_generator()}


def compared_batch() -> dict[str, Any]:
    return tiny_batch() | {"return_loss": True}


def pixel_batch() -> dict[str, Tensor]:
    return {"pixel_values": tiny_batch()["pixel_values"]}


def grounded_text_batch() -> dict[str, Tensor]:
    """Texts, and the states of three encoded images."""
    text = {name: value for name, value in tiny_batch().items() if name != "pixel_values"}
    return text | {"encoder_hidden_states": torch.randn(3, 5, VISION["hidden_size"], generator=seeded_generator())}


def grounded_caption_batch() -> dict[str, Tensor]:
    batch = grounded_text_batch()
    return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


# Contrastive models without queue: it starts at random, which changes the losses.
MODEL_CASES = {
    "captioning": ModelCase(BlipForConditionalGeneration, tiny_config, caption_batch),
    "matching": ModelCase(BlipForImageTextRetrieval, tiny_config, matching_batch),
    "vqa": ModelCase(BlipForQuestionAnswering, tiny_config, vqa_batch),
    "nlvr2": ModelCase(BlipForVisualReasoning, tiny_nlvr2_config, nlvr2_batch),
    "pretraining": ModelCase(BlipForPreTraining, lambda: tiny_pretraining_config(queue_size=0), pairs_batch),
    "retrieval": ModelCase(BlipForRetrievalTraining, lambda: tiny_retrieval_config(queue_size=0), pairs_batch),
    "dual_encoder": ModelCase(BlipModel, tiny_config, compared_batch),
    "vision": ModelCase(BlipVisionModel, lambda: tiny_config().vision_config, pixel_batch),
    "text": ModelCase(BlipTextModel, lambda: tiny_config().text_config, grounded_text_batch),
    "text_decoder": ModelCase(BlipTextLMHeadModel, lambda: tiny_config().text_config, grounded_caption_batch),
}
CONTRASTIVE_CASES = ("pretraining", "retrieval")


def cases_except(*names: str) -> list[str]:
    """Names of the cases without some of them."""
    return [name for name in MODEL_CASES if name not in names]


def for_cases(names: Iterable[str]) -> pytest.MarkDecorator:
    """Runs a test with each of the named cases as `case`."""
    return pytest.mark.parametrize("case", [MODEL_CASES[name] for name in names], ids=names)


def tensors_of(output: Any) -> dict[str, Tensor]:
    """All floating-point tensors of an output by field, those of tuples by field and index."""
    found = {}
    for name, value in output.items():
        parts: Iterable[Any] = value if isinstance(value, tuple) else (value,)
        for index, part in enumerate(parts):
            if isinstance(part, Tensor) and part.is_floating_point():
                found[f"{name}.{index}"] = part
    return found
