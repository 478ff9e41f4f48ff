# SPDX-License-Identifier: BSD-3-Clause
"""Pre-training model: image encoder and text transformer with three objectives (paper, section 3.2)."""

import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import can_return_tuple

from ..configuration_blip import BlipPreTrainingConfig, BlipTextConfig, BlipVisionConfig
from .attention import ImageMemory, image_argument
from .caption import BlipForConditionalGeneration
from .contrastive import BlipContrastiveModel
from .input_checks import refuse_token_types
from .language_modeling import BlipTextLMHeadModel
from .momentum import image_ids_or_unknown
from .outputs import BlipPreTrainingOutput
from .text import BlipTextModel
from .vision import BlipVisionModel
from .warm_start import copy_into, read_text_encoder, read_vision_encoder


# Encoder and decoder share all weights except self-attention (paper, section 3.1 and table 3).
SHARED_TEXT_PARTS = (
    "embeddings",
    r"encoder.layer.\d+.crossattention",
    r"encoder.layer.\d+.intermediate",
    r"encoder.layer.\d+.output",
)


class BlipForPreTraining(BlipContrastiveModel):
    """BLIP with its three objectives (ITC, ITM, LM), momentum encoder and feature queue.

    `forward` changes no state. Call `enqueue(output)` after each backward pass and `update_momentum()` after each
    optimiser step; `BlipContrastiveTrainer` does both. `save_pretrained` omits the momentum encoder and the queue;
    `training_state_dict` returns them. `from_pretrained` starts the momentum encoder from the loaded weights.
    """

    config: BlipPreTrainingConfig
    _tied_weights_keys = {
        "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
        "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
        **{f"text_encoder.{part}": f"text_decoder.bert.{part}" for part in SHARED_TEXT_PARTS},
    }

    def __init__(self, config: BlipPreTrainingConfig) -> None:
        super().__init__(config)
        config = self.config
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
        self.text_decoder = BlipTextLMHeadModel(config.text_config)
        self._add_contrastive_parts()

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str | os.PathLike | None = None,
        text: str | os.PathLike | None = None,
        *,
        image_size: int | None = None,
        vision_fields: dict[str, Any] | None = None,
        text_fields: dict[str, Any] | None = None,
        **config_fields: Any,
    ) -> "BlipForPreTraining":
        """Initialises both encoders in fp32 from a pre-trained ViT and BERT (paper, section 4.1).

        Cross-attention, heads and projections start at random. Returns the model in training mode.

        Args:
            vision (`str` or `os.PathLike`, *optional*):
                Directory or Hub id of a ViT, DeiT or `BlipVisionModel` checkpoint. By default, random weights.
            text (`str` or `os.PathLike`, *optional*):
                Directory or Hub id of a BERT checkpoint. By default, random weights.
            vision_fields (`dict`, *optional*):
                Fields of `BlipVisionConfig`, including sizes if there is no `vision`.
            text_fields (`dict`, *optional*):
                Fields of `BlipTextConfig`: token ids from `BlipProcessor.config_token_ids()`, dropout, and sizes if there is
                no `text`.
            **config_fields:
                Fields of `BlipPreTrainingConfig`.
        """
        vision_config: BlipVisionConfig | dict[str, Any] = dict(vision_fields or {})
        vision_state: dict[str, Tensor] = {}
        if vision is not None:
            vision_config, vision_state = read_vision_encoder(vision, **vision_config)
        text_config: BlipTextConfig | dict[str, Any] = dict(text_fields or {})
        text_state: dict[str, Tensor] = {}
        if text is not None:
            text_config, text_state = read_text_encoder(text, **text_config)
        model = cls(BlipPreTrainingConfig(text_config=text_config, vision_config=vision_config, **config_fields))
        copy_into(model.vision_model, vision_state)
        copy_into(model.text_encoder, text_state)
        self_attention = {name: value for name, value in text_state.items() if ".attention." in name}
        copy_into(model.text_decoder.bert, self_attention)  # the rest is shared with the encoder
        if image_size is not None:
            model.resize_position_embeddings(image_size)
        model.reset_momentum()
        return model.train()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings shared by encoder and decoder."""
        return self.text_decoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the word embeddings of encoder and decoder."""
        self.text_decoder.set_input_embeddings(value)
        self.text_encoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The vocabulary projection."""
        return self.text_decoder.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the vocabulary projection and its bias."""
        self.text_decoder.set_output_embeddings(new_embeddings)

    def unused_parameters(self) -> list[nn.Parameter]:
        """Parameters without a gradient because a loss has weight 0. Freeze them for data parallelism."""
        named = list(self.named_parameters(remove_duplicate=False))
        used = {id(parameter) for name, parameter in named if self._is_used(name)}  # under any of its names
        return [parameter for parameter in self.parameters() if id(parameter) not in used]

    def _is_used(self, name: str) -> bool:
        if name.startswith("text_decoder."):
            return self.config.lm_weight > 0
        if name.startswith("itm_head.") or (name.startswith("text_encoder.") and ".crossattention." in name):
            return self.config.itm_weight > 0
        return True

    def export_captioner(self) -> BlipForConditionalGeneration:
        """The captioning model inside, which shares its weights with this model; plain transformers can load it."""
        return self._export(BlipForConditionalGeneration, ("vision_model", "text_decoder"))

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
    ) -> BlipPreTrainingOutput:
        """Computes the three losses of a batch of pairs.

        Args:
            pixel_values (`torch.Tensor` of shape `(b, 3, height, width)`):
                Normalised pixels.
            input_ids (`torch.Tensor` of shape `(b, t)`):
                Captions from [CLS] to [SEP]. [ENC] and [DEC] are set here.
            alpha (`float` or scalar `torch.Tensor`, *optional*, defaults to the configuration's):
                Weight of the momentum encoder's distribution in the contrastive targets.
            image_ids (`torch.Tensor` of shape `(b,)`, *optional*):
                Equal for captions of one image, which are then not negatives of each other.
            generator (`torch.Generator`, *optional*):
                Samples the hard negatives.
            return_loss (`bool`, *optional*, defaults to `True`):
                Makes Trainer compute the loss without labels. Must be true.
            token_type_ids (`torch.Tensor` of shape `(b, t)`, *optional*):
                Zeros, as a BERT tokenizer returns them. BLIP has no token types.
        """
        refuse_token_types(token_type_ids, self)
        attention_mask = self._check_inputs(input_ids, attention_mask, return_loss)
        config = self.config
        tokens = config.text_config
        words, encoder_words, decoder_words = self._embed_words(input_ids, tokens.enc_token_id, tokens.bos_token_id)
        image_embeds, features, keys = self._encode(pixel_values, input_ids, attention_mask, words)
        images: ImageMemory | Tensor = image_embeds
        if config.itm_weight or config.lm_weight:
            images = self.text_decoder.bert.build_image_memory(image_embeds)

        known_ids = image_ids_or_unknown(image_ids, pixel_values)
        with torch.autocast(pixel_values.device.type, enabled=False):
            loss_itc, logits, positives = self._contrast(features, keys, alpha, known_ids)
        loss = config.itc_weight * loss_itc
        loss_itm = itm_logits = itm_labels = loss_lm = lm_logits = None
        if config.itm_weight:
            if config.negative_all_rank and self._spans_ranks():
                loss_itm, itm_logits, itm_labels = self._match_all_ranks(
                    image_embeds, features, keys, input_ids, attention_mask, known_ids, generator
                )
            else:
                loss_itm, itm_logits, itm_labels = self._match(
                    images, encoder_words, attention_mask, logits, positives, generator
                )
            loss = loss + config.itm_weight * loss_itm
        if config.lm_weight:
            loss_lm, lm_logits = self._caption(images, decoder_words, input_ids, attention_mask)
            loss = loss + config.lm_weight * loss_lm
        return BlipPreTrainingOutput(
            loss=loss,
            loss_itc=loss_itc,
            loss_itm=loss_itm,
            loss_lm=loss_lm,
            itm_logits=itm_logits,
            itm_labels=itm_labels,
            lm_logits=lm_logits,
            image_features=features[0],
            text_features=features[1],
            momentum_image_features=keys[0],
            momentum_text_features=keys[1],
            image_ids=image_ids,
        )

    def _caption(
        self, images: ImageMemory | Tensor, words: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """LM loss and logits of captions; every token after the first is a target, including [SEP]."""
        labels = input_ids.masked_fill(attention_mask == 0, -100)
        num_tokens = self._count_for_mean((labels[:, 1:] != -100).sum())
        outputs = self.text_decoder(
            inputs_embeds=words[:, :-1],
            attention_mask=attention_mask[:, :-1],
            labels=labels[:, :-1],
            shift_labels=labels[:, 1:],
            num_items_in_batch=num_tokens,
            **image_argument(images),
        )
        return outputs.loss, outputs.logits


__all__ = ["SHARED_TEXT_PARTS", "BlipForPreTraining"]
