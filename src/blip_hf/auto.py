# SPDX-License-Identifier: BSD-3-Clause
"""Registration in transformers' Auto classes, for who wants it; importing the package never does."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from .configuration_blip import (
    BlipConfig,
    BlipPreTrainingConfig,
    BlipRetrievalTrainingConfig,
    BlipVisualReasoningConfig,
)
from .modeling.caption import BlipForConditionalGeneration
from .modeling.nlvr2 import BlipForVisualReasoning
from .modeling.pretraining import BlipForPreTraining
from .modeling.retrieval_training import BlipForRetrievalTraining


def register_auto_classes() -> None:
    """Makes the Auto classes of this process return this package's classes for BLIP checkpoints.

    `AutoModelForImageTextToText` then loads `model_type: "blip"` here in place of transformers' own, and `AutoModel`
    knows `"blip_pretraining"`, `"blip_retrieval_training"` and `"blip_visual_reasoning"`. `AutoProcessor` cannot be told:
    it finds transformers' class by the name in the files. Use `BlipProcessor.from_pretrained`.
    """
    AutoConfig.register("blip", BlipConfig, exist_ok=True)
    AutoConfig.register("blip_pretraining", BlipPreTrainingConfig, exist_ok=True)
    AutoConfig.register("blip_retrieval_training", BlipRetrievalTrainingConfig, exist_ok=True)
    AutoConfig.register("blip_visual_reasoning", BlipVisualReasoningConfig, exist_ok=True)
    AutoModel.register(BlipPreTrainingConfig, BlipForPreTraining, exist_ok=True)
    AutoModel.register(BlipRetrievalTrainingConfig, BlipForRetrievalTraining, exist_ok=True)
    AutoModel.register(BlipVisualReasoningConfig, BlipForVisualReasoning, exist_ok=True)
    AutoModelForImageTextToText.register(BlipConfig, BlipForConditionalGeneration, exist_ok=True)


__all__ = ["register_auto_classes"]
