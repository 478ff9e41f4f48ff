# SPDX-License-Identifier: BSD-3-Clause
"""Retrieval fine-tuning: ITC with image ids, and ITM with hard negatives (paper, section 5.1).

Letters: `b` batch, `t` tokens.
"""

import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import can_return_tuple

from ..configuration_blip import BlipConfig, BlipRetrievalTrainingConfig
from .contrastive import BlipContrastiveModel
from .input_checks import refuse_token_types
from .momentum import image_ids_or_unknown
from .outputs import BlipContrastiveOutput
from .pretraining import SHARED_TEXT_PARTS, BlipForPreTraining
from .retrieval import BlipForImageTextRetrieval
from .text import BlipTextModel
from .vision import BlipVisionModel


# A pre-training checkpoint stores the shared weights of encoder and decoder under the decoder's names.
_PRETRAINING_NAMES = {rf"^text_decoder\.bert\.({'|'.join(SHARED_TEXT_PARTS)})\.": r"text_encoder.\1."}


class BlipForRetrievalTraining(BlipContrastiveModel):
    """Retrieval model for fine-tuning, with temperature, momentum encoder and feature queue.

    Captions with the same `image_ids` are positives of each other in ITC and never negatives in ITM. Hard negatives
    are sampled by the similarity of the online features.

    `from_pretrained` takes checkpoints of this class, of `BlipForImageTextRetrieval` (also of transformers), and of
    `BlipForPreTraining`. The momentum encoder starts from the loaded weights, the queue at random. `forward` changes no
    state: call `enqueue` and `update_momentum` as for `BlipForPreTraining`, or use `BlipContrastiveTrainer`.

    Example:
        ```python
        model = BlipForRetrievalTraining.from_pretrained("Salesforce/blip-itm-base-coco", queue_size=4096)
        BlipContrastiveTrainer(model, BlipFinetuningArguments("runs/retrieval"), train_dataset=pairs, ...).train()
        model.export_retriever().save_pretrained("matcher")
        ```
    """

    config: BlipRetrievalTrainingConfig
    _keys_to_ignore_on_load_missing = [*BlipContrastiveModel._keys_to_ignore_on_load_missing, r"^temp$"]
    _keys_to_ignore_on_load_unexpected = [
        *BlipContrastiveModel._keys_to_ignore_on_load_unexpected,
        r"^text_decoder\.",
    ]

    def __init__(self, config: BlipRetrievalTrainingConfig) -> None:
        super().__init__(config)
        config = self.config
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
        self._add_contrastive_parts()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Loads a checkpoint of this class, of `BlipForImageTextRetrieval`, or of `BlipForPreTraining`.

        Arguments as in `BlipPreTrainedModel.from_pretrained`, including configuration fields such as `queue_size`.
        """
        return super().from_pretrained(
            pretrained_model_name_or_path, *args, key_mapping=dict(_PRETRAINING_NAMES), **kwargs
        )

    def _finish_loading(self) -> None:
        super()._finish_loading()
        self._weight_conversions = None  # transformers (5.23) would save the weights under their old names

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the word embeddings."""
        self.text_encoder.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        alpha: float | Tensor | None = None,
        image_ids: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_loss: bool = True,
        token_type_ids: Tensor | None = None,
    ) -> BlipContrastiveOutput:
        """Computes ITC and ITM for a batch of pairs.

        Args:
            pixel_values (`torch.Tensor` of shape `(b, 3, height, width)`):
                Normalised pixels.
            input_ids (`torch.Tensor` of shape `(b, t)`):
                Captions from [CLS] to [SEP]. [ENC] is set here.
            alpha (`float` or scalar `torch.Tensor`, *optional*, defaults to the configuration's):
                Weight of the momentum encoder's distribution in the contrastive targets.
            image_ids (`torch.Tensor` of shape `(b,)`, *optional*):
                Equal for captions of one image. By default each pair has its own image.
            generator (`torch.Generator`, *optional*):
                Samples the hard negatives.
            return_loss (`bool`, *optional*, defaults to `True`):
                Makes Trainer compute the loss without labels. Must be true.
            token_type_ids (`torch.Tensor` of shape `(b, t)`, *optional*):
                Zeros, as a BERT tokenizer returns them. BLIP has no token types.
        """
        refuse_token_types(token_type_ids, self)
        attention_mask = self._check_inputs(input_ids, attention_mask, return_loss)
        words, encoder_words = self._embed_words(input_ids, self.config.text_config.enc_token_id)
        image_embeds, features, keys = self._encode(pixel_values, input_ids, attention_mask, words)
        known_ids = image_ids_or_unknown(image_ids, pixel_values)
        with torch.autocast(pixel_values.device.type, enabled=False):
            loss_itc, _, positives = self._contrast(features, keys, alpha, known_ids)
        if self.config.negative_all_rank and self._spans_ranks():
            loss_itm, itm_logits, itm_labels = self._match_all_ranks(
                image_embeds, features, features, input_ids, attention_mask, known_ids, generator
            )
        else:
            logits = self._online_logits(features, features)
            loss_itm, itm_logits, itm_labels = self._match(
                image_embeds, encoder_words, attention_mask, logits, positives, generator
            )
        return BlipContrastiveOutput(
            loss=loss_itc + loss_itm,
            loss_itc=loss_itc,
            loss_itm=loss_itm,
            itm_logits=itm_logits,
            itm_labels=itm_labels,
            image_features=features[0],
            text_features=features[1],
            momentum_image_features=keys[0],
            momentum_text_features=keys[1],
            image_ids=image_ids,
        )


def load_matching_model(path: str | os.PathLike) -> BlipForImageTextRetrieval | BlipContrastiveModel:
    """Loads a checkpoint with an ITM head in fp32, by the class that saved it."""
    settings, _ = BlipConfig.get_config_dict(path)
    for trained_class in (BlipForPreTraining, BlipForRetrievalTraining):
        if settings.get("model_type") == trained_class.config_class.model_type:
            return trained_class.from_pretrained(path, dtype=torch.float32)
    # Raises for a checkpoint of another class.
    return BlipForImageTextRetrieval.from_pretrained(path, dtype=torch.float32)


__all__ = ["BlipForRetrievalTraining", "load_matching_model"]
