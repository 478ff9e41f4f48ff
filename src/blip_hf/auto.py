# SPDX-License-Identifier: BSD-3-Clause
"""Optional registration in the Auto classes of transformers."""

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
    """Registers the classes of this package in the Auto classes of transformers, for the current process.

    `AutoModelForImageTextToText` then loads `model_type: "blip"` with this package in place of transformers, and
    `AutoModel` loads `"blip_pretraining"`, `"blip_retrieval_training"` and `"blip_visual_reasoning"`. `AutoProcessor`
    cannot be changed, since it finds the class of transformers by its name. Use `BlipProcessor.from_pretrained`.
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
