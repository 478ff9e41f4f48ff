# SPDX-License-Identifier: BSD-3-Clause
"""BLIP on Hugging Face Transformers: caption, match, pre-train.

Names are loaded when they are first used: `import blip_hf` is instant and changes nothing in transformers.
"""

import importlib
from typing import Any


__version__ = "0.1.0"

_HOMES = {
    "configuration_blip": [
        "BlipConfig",
        "BlipPreTrainingConfig",
        "BlipRetrievalTrainingConfig",
        "BlipTextConfig",
        "BlipVisionConfig",
        "BlipVisualReasoningConfig",
    ],
    "image_processing_blip": ["BlipImageProcessor"],
    "processing_blip": ["BlipProcessor"],
    "modeling.vision": ["BlipVisionModel"],
    "modeling.text": ["BlipTextModel"],
    "modeling.language_modeling": ["BlipTextLMHeadModel"],
    "modeling.base": ["BlipPreTrainedModel"],
    "modeling.cpu": ["optimize_for_cpu"],
    "modeling.caption": ["BlipForConditionalGeneration"],
    "modeling.retrieval": ["BlipForImageTextRetrieval"],
    "modeling.pretraining": ["BlipForPreTraining"],
    "modeling.retrieval_training": ["BlipForRetrievalTraining"],
    "modeling.nlvr2": ["BlipForVisualReasoning"],
    "modeling.vqa": ["BlipForQuestionAnswering"],
    "auto": ["register_auto_classes"],
    "capfilt.refilter": ["refilter"],
    "capfilt.filters": ["Rule"],
    "data.readers.shards": ["find_shards"],
    "captioner": ["BlipCaptioner", "Caption"],
    "evaluation.retrieval": ["RetrievalResult", "evaluate_retrieval"],
    "evaluation.video": ["evaluate_video_retrieval"],
    "evaluation.zero_shot": ["ZeroShotClassifier"],
    "evaluation.vqa": ["VqaResult", "evaluate_vqa"],
    "training.arguments": ["BlipFinetuningArguments", "BlipTrainingArguments"],
    "training.trainer": ["BlipTrainer"],
    "training.contrastive_trainer": ["BlipContrastiveTrainer"],
    "evaluation.caption_metrics": ["caption_metrics"],
    "evaluation.caption": ["evaluate_captions"],
    "conversion": [
        "Conversion",
        "convert_original_checkpoint",
        "convert_original_state_dict",
        "restore_original_checkpoint",
        "restore_original_state_dict",
    ],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'blip_hf' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
