# SPDX-License-Identifier: BSD-3-Clause
"""Text transformer with three roles: encoder, image-grounded encoder and decoder (paper, section 3.1).

Without images, cross-attention is skipped (encoder). With images, it reads an image memory (image-grounded encoder).
With `is_decoder=True`, self-attention is causal (image-grounded decoder).
"""

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.processing_utils import Unpack
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ..configuration_blip import BlipTextConfig
from .attention import ImageMemory, cross_attention_mask, self_attention_mask
from .base import BlipPreTrainedModel, ForwardKwargs, refuse_unknown, wants_attentions
from .input_checks import refuse_long_text, refuse_token_types
from .text_layers import (
    BlipTextCrossAttention,
    BlipTextEmbeddings,
    BlipTextEncoder,
    BlipTextLayer,
    BlipTextPooler,
    BlipTextSelfAttention,
)


class BlipTextPreTrainedModel(BlipPreTrainedModel):
    """Base class of the text models."""

    config: BlipTextConfig
    base_model_prefix = "bert"
    input_modalities = ["text"]
    main_input_name = "input_ids"
    _can_record_outputs = {
        "hidden_states": BlipTextLayer,
        "attentions": OutputRecorder(BlipTextSelfAttention, index=1),
        "cross_attentions": OutputRecorder(BlipTextCrossAttention, index=1),
    }


class BlipTextModel(BlipTextPreTrainedModel):
    """Text transformer without a head.

    Args:
        config (`BlipTextConfig`):
            Configuration. As upstream, layers have cross-attention if `is_decoder` is true.
        add_pooling_layer (`bool`, *optional*, defaults to `True`):
            Whether to add BERT's pooler.
    """

    def __init__(self, config: BlipTextConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        config = self.config
        self.embeddings = BlipTextEmbeddings(config)
        self.encoder = BlipTextEncoder(config)
        self.pooler = BlipTextPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the word embeddings."""
        self.embeddings.word_embeddings = value

    def build_image_memory(
        self,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        for_decoding: bool = False,
    ) -> ImageMemory:
        """Projects encoder states `(n, p, encoder_d)` to the keys and values of every cross-attention layer.

        `for_decoding` stores the keys and values of each head contiguously, which makes decoding steps faster.
        """
        self._require_cross_attention()
        pairs = [
            layer.project_images(encoder_hidden_states)  # type: ignore[operator]  # a ModuleList forgets the class
            for layer in self.encoder.layer
        ]
        if for_decoding:
            pairs = [(key.contiguous(), value.contiguous()) for key, value in pairs]
        keys, values = zip(*pairs, strict=True)
        return ImageMemory(keys, values, encoder_attention_mask)

    def _require_cross_attention(self) -> None:
        if not self.config.is_decoder:
            raise ValueError("This text model has no cross-attention. Build it with text_config.is_decoder=True.")

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        is_decoder: bool | None = False,
        image_memory: ImageMemory | None = None,
        image_index: Tensor | None = None,
        cls_only: bool = False,
        token_type_ids: Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Runs the text transformer.

        Args:
            input_ids (`torch.Tensor` of shape `(b, t)`, *optional*):
                Token ids.
            attention_mask (`torch.Tensor` of shape `(b, t)`, *optional*):
                0 for padding. Padding on the left shifts positions unless `position_ids` is given.
            inputs_embeds (`torch.Tensor` of shape `(b, t, d)`, *optional*):
                Word embeddings, instead of `input_ids`.
            encoder_embeds (`torch.Tensor` of shape `(b, t, d)`, *optional*):
                Output of the embedding layer, instead of `input_ids`.
            encoder_hidden_states (`torch.Tensor` of shape `(n, p, encoder_d)`, *optional*):
                Encoded images: `b / n` consecutive text rows read each image. Each layer projects them in its own forward,
                as FSDP needs.
            use_cache (`bool`, *optional*):
                Whether to return a cache; requires `is_decoder`.
            is_decoder (`bool`, *optional*, defaults to `False`):
                Whether self-attention is causal.
            image_memory (`ImageMemory`, *optional*):
                Result of `build_image_memory`, instead of `encoder_hidden_states`, for more than one call.
            image_index (`torch.Tensor` of shape `(r,)`, *optional*):
                Indices of the images that the last `r` rows read. The rows before them read all images in order.
            cls_only (`bool`, *optional*, defaults to `False`):
                Whether the last layer computes position 0 only, which is enough for features and matching scores. The
                output then has `t = 1`. Not supported with `is_decoder`.
            token_type_ids (`torch.Tensor` of shape `(b, t)`, *optional*):
                Zeros, as a BERT tokenizer returns them. BLIP has no token types.
        """
        refuse_unknown(kwargs, self)
        refuse_token_types(token_type_ids, self)
        if cls_only and is_decoder:
            raise ValueError("cls_only is not supported with is_decoder=True. Remove one of them.")
        use_cache = bool(use_cache and is_decoder and not self.training)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        hidden_states = self._embed(input_ids, position_ids, inputs_embeds, encoder_embeds, past_key_values)
        if image_memory is not None:
            encoder_hidden_states, encoder_attention_mask = None, image_memory.mask
            check_rows(hidden_states, image_memory.num_images, image_index)
        elif encoder_hidden_states is not None:
            self._require_cross_attention()
            check_rows(hidden_states, encoder_hidden_states.shape[0], image_index)

        output_attentions = wants_attentions(kwargs, self.config)
        implementation = "eager" if output_attentions else self.config._attn_implementation
        mask = self_attention_mask(
            attention_mask, hidden_states, past_key_values, is_causal=bool(is_decoder), implementation=implementation
        )
        image_mask = cross_attention_mask(encoder_attention_mask, implementation=implementation)
        for idx, layer in enumerate(self.encoder.layer):
            is_cut = cls_only and idx == len(self.encoder.layer) - 1
            hidden_states = layer(
                hidden_states,
                mask,
                encoder_hidden_states,
                None if image_memory is None else image_memory.keys[idx],
                None if image_memory is None else image_memory.values[idx],
                image_mask,
                image_index,
                past_key_values=past_key_values,
                is_causal=is_decoder,
                output_attentions=output_attentions,
                cls_only=is_cut,
            )
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=hidden_states,
            pooler_output=None if self.pooler is None else self.pooler(hidden_states),
            past_key_values=past_key_values if use_cache else None,
        )

    def _embed(
        self,
        input_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        encoder_embeds: Tensor | None,
        past_key_values: Cache | None,
    ) -> Tensor:
        if sum(given is not None for given in (input_ids, inputs_embeds, encoder_embeds)) != 1:
            raise ValueError("Pass exactly one of input_ids, inputs_embeds and encoder_embeds.")
        if encoder_embeds is not None:
            return encoder_embeds
        if inputs_embeds is None:
            inputs_embeds = self.embeddings.word_embeddings(input_ids)
        if position_ids is None:
            length = inputs_embeds.shape[1]
            refuse_long_text(length, self.config)
            position_ids = torch.arange(length, device=inputs_embeds.device)[None]
            if past_key_values is not None:
                position_ids = position_ids + past_key_values.get_seq_length()
        return self.embeddings(inputs_embeds, position_ids)


def check_rows(hidden_states: Tensor, num_images: int, image_index: Tensor | None) -> None:
    """Raises `ValueError` if text rows, of shape `(b, ...)`, do not divide among the images."""
    if torch.jit.is_tracing():  # a trace has no branches
        return
    num_grouped = hidden_states.shape[0] - (0 if image_index is None else image_index.shape[0])
    if num_grouped < 0 or num_grouped % num_images:
        raise ValueError(
            f"{num_grouped} text rows do not divide among {num_images} images. Pass one text per image, the"
            " same number of consecutive texts for each image, or one text for all images."
        )


__all__ = ["BlipTextModel", "BlipTextPreTrainedModel", "check_rows"]
