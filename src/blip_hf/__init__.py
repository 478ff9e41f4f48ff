# SPDX-License-Identifier: BSD-3-Clause
"""BLIP on Hugging Face Transformers: captioning, retrieval, VQA, NLVR2, pre-training and CapFilt.

Names are imported when they are first used: `import blip_hf` is fast and changes nothing in transformers.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:  # the names of `_HOME_OF`, for type checkers and editors
    # isort: off
    from .auto import register_auto_classes as register_auto_classes
    from .capfilt.filters import Rule as Rule
    from .capfilt.refilter import refilter as refilter
    from .caption_settings import CaptionSettings as CaptionSettings
    from .captioner import BlipCaptioner as BlipCaptioner, Caption as Caption
    from .configuration_blip import (
        BlipConfig as BlipConfig,
        BlipPreTrainingConfig as BlipPreTrainingConfig,
        BlipRetrievalTrainingConfig as BlipRetrievalTrainingConfig,
        BlipTextConfig as BlipTextConfig,
        BlipVisionConfig as BlipVisionConfig,
        BlipVisualReasoningConfig as BlipVisualReasoningConfig,
    )
    from .conversion import (
        Conversion as Conversion,
        convert_original_checkpoint as convert_original_checkpoint,
        convert_original_state_dict as convert_original_state_dict,
        restore_original_checkpoint as restore_original_checkpoint,
        restore_original_state_dict as restore_original_state_dict,
    )
    from .data.collators import (
        BlipCaptioningCollator as BlipCaptioningCollator,
        BlipMatchingCollator as BlipMatchingCollator,
        BlipPretrainingCollator as BlipPretrainingCollator,
    )
    from .data.nlvr2 import (
        BlipNlvr2Collator as BlipNlvr2Collator,
        Nlvr2Dataset as Nlvr2Dataset,
        Nlvr2TrainTransform as Nlvr2TrainTransform,
    )
    from .data.pairs import PairDataset as PairDataset
    from .data.readers import (
        find_shards as find_shards,
        group_captions as group_captions,
        load_images as load_images,
        load_nlvr2 as load_nlvr2,
        load_nocaps as load_nocaps,
        load_pairs as load_pairs,
        load_vqa as load_vqa,
        most_common_answers as most_common_answers,
    )
    from .data.transforms import TrainTransform as TrainTransform
    from .data.vqa import BlipVqaCollator as BlipVqaCollator, VqaDataset as VqaDataset
    from .evaluation.answering import Answer as Answer, answer_questions as answer_questions
    from .evaluation.caption import CaptionResult as CaptionResult, evaluate_captions as evaluate_captions
    from .evaluation.caption_metrics import caption_metrics as caption_metrics
    from .evaluation.matching import Match as Match, match_texts as match_texts
    from .evaluation.nlvr2 import evaluate_nlvr2 as evaluate_nlvr2, Nlvr2Result as Nlvr2Result
    from .evaluation.retrieval import evaluate_retrieval as evaluate_retrieval, RetrievalResult as RetrievalResult
    from .evaluation.video import evaluate_video_retrieval as evaluate_video_retrieval
    from .evaluation.vqa import evaluate_vqa as evaluate_vqa, VqaResult as VqaResult
    from .evaluation.zero_shot import ZeroShotClassifier as ZeroShotClassifier
    from .explanation import explain as explain, Explanation as Explanation
    from .export.exporter import export_model as export_model
    from .image_processing_blip import (
        BlipImageProcessor as BlipImageProcessor,
        BlipImageProcessorFast as BlipImageProcessorFast,
        BlipImageProcessorPil as BlipImageProcessorPil,
    )
    from .modeling.base import BlipPreTrainedModel as BlipPreTrainedModel
    from .modeling.caption import BlipForConditionalGeneration as BlipForConditionalGeneration
    from .modeling.cpu import optimize_for_cpu as optimize_for_cpu
    from .modeling.dual_encoder import BlipModel as BlipModel
    from .modeling.language_modeling import BlipTextLMHeadModel as BlipTextLMHeadModel
    from .modeling.nlvr2 import BlipForVisualReasoning as BlipForVisualReasoning
    from .modeling.pretraining import BlipForPreTraining as BlipForPreTraining
    from .modeling.retrieval import BlipForImageTextRetrieval as BlipForImageTextRetrieval
    from .modeling.retrieval_training import BlipForRetrievalTraining as BlipForRetrievalTraining
    from .modeling.text import BlipTextModel as BlipTextModel, BlipTextPreTrainedModel as BlipTextPreTrainedModel
    from .modeling.vision import BlipVisionModel as BlipVisionModel
    from .modeling.vqa import BlipForQuestionAnswering as BlipForQuestionAnswering
    from .processing_blip import BlipProcessor as BlipProcessor
    from .search.index import BlipIndex as BlipIndex
    from .training.arguments import (
        BlipFinetuningArguments as BlipFinetuningArguments,
        BlipTrainingArguments as BlipTrainingArguments,
    )
    from .training.contrastive_trainer import BlipContrastiveTrainer as BlipContrastiveTrainer
    from .training.trainer import BlipTrainer as BlipTrainer
    # isort: on

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
