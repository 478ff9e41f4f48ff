# SPDX-License-Identifier: BSD-3-Clause
"""Optional registration in the Auto classes of transformers."""

from collections.abc import Iterator

import transformers
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING, IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.utils import logging

from .configuration_blip import (
    BlipConfig,
    BlipPreTrainingConfig,
    BlipRetrievalTrainingConfig,
    BlipTextConfig,
    BlipVisionConfig,
    BlipVisualReasoningConfig,
)
from .image_processing_blip import BlipImageProcessor
from .modeling.base import BlipPreTrainedModel
from .modeling.caption import BlipForConditionalGeneration
from .modeling.dual_encoder import BlipModel
from .modeling.nlvr2 import BlipForVisualReasoning
from .modeling.pretraining import BlipForPreTraining
from .modeling.retrieval import BlipForImageTextRetrieval
from .modeling.retrieval_training import BlipForRetrievalTraining
from .modeling.vqa import BlipForQuestionAnswering
from .processing_blip import BlipProcessor


logger = logging.get_logger(__name__)

# Classes that transformers has under the same name. Its mappings tell which Auto class loads which of the models.
_CONFIGS_OF_BOTH: tuple[type[PreTrainedConfig], ...] = (BlipConfig, BlipTextConfig, BlipVisionConfig)
_MODELS_OF_BOTH = {
    model_class.__name__: model_class
    for model_class in (BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering, BlipModel)
}
# Classes that only this package has.
_OWN_MODELS: dict[type[BlipConfig], type[BlipPreTrainedModel]] = {
    BlipPreTrainingConfig: BlipForPreTraining,
    BlipRetrievalTrainingConfig: BlipForRetrievalTraining,
    BlipVisualReasoningConfig: BlipForVisualReasoning,
}


def register_auto_classes() -> None:
    """Registers the classes of this package in the Auto classes of transformers, for the current process.

    - Each Auto class for which transformers has a model of type `"blip"` loads the class of the same name from this
      package: in version 5.23 `AutoModel`, `AutoModelForImageTextToText`, `AutoModelForMultimodalLM`,
      `AutoModelForVisualQuestionAnswering` and `AutoModelForZeroShotImageClassification`.
    - `AutoConfig` returns the configurations of this package, also for `"blip_text_model"` and `"blip_vision_model"`.
    - `AutoModel` also loads `"blip_pretraining"`, `"blip_retrieval_training"` and `"blip_visual_reasoning"`.
    - `AutoImageProcessor` returns `BlipImageProcessor` for all files that name this class, which those of BLIP-2 do too.
    - `AutoProcessor` returns `BlipProcessor` for files that name no processor class. For those that do, it returns the
      class of transformers, which it finds first. Use `BlipProcessor.from_pretrained`.
    - `AutoTokenizer` stays as it is: the tokenizer is BERT's, as in transformers.
    """
    for config_class in (*_CONFIGS_OF_BOTH, *_OWN_MODELS):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for auto_class, model_class in _models_by_auto_class():
        for config_class in (BlipConfig, transformers.BlipConfig):
            auto_class.register(config_class, model_class, exist_ok=True)
    for config_class, model_class in _OWN_MODELS.items():
        AutoModel.register(config_class, model_class, exist_ok=True)
    backends = dict.fromkeys(IMAGE_PROCESSOR_MAPPING_NAMES[BlipConfig.model_type], BlipImageProcessor)
    # `AutoImageProcessor.register` would load the classes of transformers, and one needs torchvision.
    IMAGE_PROCESSOR_MAPPING.register(BlipConfig, backends, exist_ok=True)  # type: ignore[arg-type]  # takes a dict
    AutoProcessor.register(BlipConfig, BlipProcessor, exist_ok=True)


def _models_by_auto_class() -> Iterator[tuple[type[_BaseAutoModelClass], type[BlipPreTrainedModel]]]:
    """Yields each Auto class that loads a BLIP model of transformers, with our class of the same name."""
    for auto_class in vars(modeling_auto).values():
        if not isinstance(auto_class, type) or not issubclass(auto_class, _BaseAutoModelClass):
            continue
        mapping = auto_class._model_mapping
        theirs = None if mapping is None else mapping.get(transformers.BlipConfig, None)
        if theirs is None:
            continue
        if theirs.__name__ in _MODELS_OF_BOTH:
            yield auto_class, _MODELS_OF_BOTH[theirs.__name__]
        else:
            logger.warning(
                f"{auto_class.__name__} still loads transformers.{theirs.__name__}: blip_hf has no such class."
            )


__all__ = ["register_auto_classes"]
