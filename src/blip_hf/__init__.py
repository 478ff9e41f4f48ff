# SPDX-License-Identifier: BSD-3-Clause
"""BLIP on Hugging Face Transformers: captioning, retrieval, VQA, NLVR2, pre-training and CapFilt.

Names are imported when they are first used: `import blip_hf` is fast and changes nothing in transformers.
"""

import importlib
import warnings
from typing import Any


__version__ = "0.2.0"

_HOME_OF = {
    "Answer": "evaluation.answering",
    "answer_questions": "evaluation.answering",
    "BlipCaptioner": "captioner",
    "BlipCaptioningCollator": "data.collators",
    "BlipConfig": "configuration_blip",
    "BlipContrastiveTrainer": "training.contrastive_trainer",
    "BlipFinetuningArguments": "training.arguments",
    "BlipForConditionalGeneration": "modeling.caption",
    "BlipForImageTextRetrieval": "modeling.retrieval",
    "BlipForPreTraining": "modeling.pretraining",
    "BlipForQuestionAnswering": "modeling.vqa",
    "BlipForRetrievalTraining": "modeling.retrieval_training",
    "BlipForVisualReasoning": "modeling.nlvr2",
    "BlipImageProcessor": "image_processing_blip",
    "BlipImageProcessorFast": "image_processing_blip",
    "BlipImageProcessorPil": "image_processing_blip",
    "BlipIndex": "search.index",
    "BlipMatchingCollator": "data.collators",
    "BlipModel": "modeling.dual_encoder",
    "BlipNlvr2Collator": "data.nlvr2",
    "BlipPreTrainedModel": "modeling.base",
    "BlipPretrainingCollator": "data.collators",
    "BlipPreTrainingConfig": "configuration_blip",
    "BlipProcessor": "processing_blip",
    "BlipRetrievalTrainingConfig": "configuration_blip",
    "BlipTextConfig": "configuration_blip",
    "BlipTextLMHeadModel": "modeling.language_modeling",
    "BlipTextModel": "modeling.text",
    "BlipTextPreTrainedModel": "modeling.text",
    "BlipTrainer": "training.trainer",
    "BlipTrainingArguments": "training.arguments",
    "BlipVisionConfig": "configuration_blip",
    "BlipVisionModel": "modeling.vision",
    "BlipVisualReasoningConfig": "configuration_blip",
    "BlipVqaCollator": "data.vqa",
    "Caption": "captioner",
    "caption_metrics": "evaluation.caption_metrics",
    "CaptionResult": "evaluation.caption",
    "CaptionSettings": "caption_settings",
    "Conversion": "conversion",
    "convert_original_checkpoint": "conversion",
    "convert_original_state_dict": "conversion",
    "evaluate_captions": "evaluation.caption",
    "evaluate_nlvr2": "evaluation.nlvr2",
    "evaluate_retrieval": "evaluation.retrieval",
    "evaluate_video_retrieval": "evaluation.video",
    "evaluate_vqa": "evaluation.vqa",
    "explain": "explanation",
    "Explanation": "explanation",
    "export_model": "export.exporter",
    "find_shards": "data.readers",
    "group_captions": "data.readers",
    "load_images": "data.readers",
    "load_nlvr2": "data.readers",
    "load_nocaps": "data.readers",
    "load_pairs": "data.readers",
    "load_vqa": "data.readers",
    "Match": "evaluation.matching",
    "match_texts": "evaluation.matching",
    "most_common_answers": "data.readers",
    "Nlvr2Dataset": "data.nlvr2",
    "Nlvr2Result": "evaluation.nlvr2",
    "Nlvr2TrainTransform": "data.nlvr2",
    "optimize_for_cpu": "modeling.cpu",
    "PairDataset": "data.pairs",
    "refilter": "capfilt.refilter",
    "register_auto_classes": "auto",
    "restore_original_checkpoint": "conversion",
    "restore_original_state_dict": "conversion",
    "RetrievalResult": "evaluation.retrieval",
    "Rule": "capfilt.filters",
    "TrainTransform": "data.transforms",
    "VqaDataset": "data.vqa",
    "VqaResult": "evaluation.vqa",
    "ZeroShotClassifier": "evaluation.zero_shot",
}

# Former names and their new ones, which are returned with a warning until version 0.3.
_RENAMED = {
    "BlipTaskTrainer": "BlipTrainer",
}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warnings.warn(
            f"`blip_hf.{name}` is deprecated and will be removed in version 0.3. Use `blip_hf.{_RENAMED[name]}`.",
            FutureWarning,
            stacklevel=2,
        )
        name = _RENAMED[name]
    if name not in _HOME_OF:
        raise AttributeError(f"module 'blip_hf' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
