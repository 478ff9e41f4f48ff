# SPDX-License-Identifier: BSD-3-Clause
"""The image encoder and the text models of an exported head, with the arguments of those in `blip_hf.modeling`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling, BaseModelOutputWithPoolingAndCrossAttentions

from ...configuration_blip import BlipTextConfig, BlipVisionConfig
from ..attention import ImageMemory, self_attention_mask
from ..input_checks import refuse_long_text, refuse_token_types
from ..text import check_rows
from ..text_layers import image_of_each_row
from .graph_names import GROUNDED_ENCODER, TEXT_DECODER, TEXT_ENCODER
from .runtimes import Runtime


_INSPECTION = ("output_attentions", "output_hidden_states")


class RuntimeVisionModel(nn.Module):
    """The image encoder."""

    def __init__(self, config: BlipVisionConfig, graph: Runtime) -> None:
        super().__init__()
        self.config = config
        self._graph = graph

    def forward(
        self, pixel_values: Tensor | None = None, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """`(n, 3, height, width)` -> states of shape `(n, p, d)`."""
        _refuse_inspection(kwargs)
        size = self.config.image_size
        if pixel_values is None or pixel_values.shape[-2:] != (size, size):
            shape = None if pixel_values is None else tuple(pixel_values.shape)
            raise ValueError(
                f"pixel_values has the shape {shape}, and this exported model reads images of {size} x {size} pixels only."
                " Resize the images with its processor, or export a model of another image size."
            )
        (states,) = self._graph(pixel_values.float())
        return BaseModelOutputWithPooling(last_hidden_state=states)


class RuntimeTextModel(nn.Module):
    """A text model. As a decoder, it returns logits in place of states."""

    def __init__(self, config: BlipTextConfig, graphs: Mapping[str, Runtime], *, memory: str) -> None:
        super().__init__()
        self.config = config
        self._graphs = graphs
        self._memory = memory

    def build_image_memory(
        self, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor | None = None, for_decoding: bool = False
    ) -> ImageMemory:
        """Projects states `(n, p, encoder_d)` to the keys and values of every cross-attention layer."""
        projected = self._graphs[self._memory](encoder_hidden_states.float())
        half = len(projected) // 2
        return ImageMemory(tuple(projected[:half]), tuple(projected[half:]), encoder_attention_mask)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        is_decoder: bool | None = False,
        image_memory: ImageMemory | None = None,
        image_index: Tensor | None = None,
        cls_only: bool = False,
        token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Arguments as in `BlipTextModel.forward`. States of encoders are those of the export, [CLS] only for a matcher."""
        _refuse_inspection(kwargs)
        refuse_token_types(token_type_ids, self)
        if inputs_embeds is not None:
            raise ValueError("An exported model takes input_ids, not inputs_embeds.")
        if encoder_hidden_states is not None:
            image_memory = self.build_image_memory(encoder_hidden_states, encoder_attention_mask)
        if image_memory is not None:
            check_rows(input_ids, image_memory.num_images, image_index)
            if image_index is not None:
                image_memory = image_memory.select(
                    image_of_each_row(image_index, image_memory.num_images, input_ids.shape[0])
                )
        if is_decoder:
            return self._decode(input_ids, attention_mask, position_ids, image_memory, past_key_values, use_cache)
        refuse_long_text(input_ids.shape[1], self.config)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        if image_memory is None:
            (states,) = self._graphs[TEXT_ENCODER](input_ids, mask)
        else:
            memory = (*image_memory.keys, *image_memory.values)
            (states,) = self._graphs[GROUNDED_ENCODER](input_ids, mask, *memory)
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=states)

    def _decode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        memory: ImageMemory | None,
        cache: Cache | None,
        use_cache: bool | None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        if memory is None:
            raise ValueError("The exported decoder reads images. Pass image_memory or encoder_hidden_states.")
        rows, length = input_ids.shape
        cache = DynamicCache(config=self.config) if cache is None else cache
        _require_dynamic(cache)
        num_past = cache.get_seq_length()
        refuse_long_text(num_past + length, self.config)
        if position_ids is None:
            position_ids = torch.arange(num_past, num_past + length)
        mask = self_attention_mask(attention_mask, input_ids, cache, is_causal=True, implementation="sdpa")
        assert mask is not None  # it is causal
        logits, *new = self._graphs[TEXT_DECODER](
            input_ids,
            position_ids.expand(rows, length),
            mask.expand(rows, 1, length, num_past + length),
            *(() if memory.mask is None else (memory.mask,)),
            *memory.keys,
            *memory.values,
            *self._past(cache, rows),
        )
        if use_cache:
            half = len(new) // 2
            for idx, (key, value) in enumerate(zip(new[:half], new[half:], strict=True)):
                cache.update(key, value, idx)
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=logits, past_key_values=cache if use_cache else None
        )

    def _past(self, cache: Cache, rows: int) -> list[Tensor]:
        """Keys, then values of earlier tokens, `(b, h, q, head_dim)` for each layer."""
        config = self.config
        if cache.get_seq_length() == 0:
            shape = (rows, config.num_attention_heads, 0, config.hidden_size // config.num_attention_heads)
            return [torch.empty(shape)] * (2 * config.num_hidden_layers)
        layers: Sequence[Any] = cache.layers  # each `DynamicLayer` has keys once it holds a token
        return [layer.keys for layer in layers] + [layer.values for layer in layers]


def _require_dynamic(cache: Cache) -> None:
    if not isinstance(cache, DynamicCache):
        raise ValueError(
            f"The cache is a {type(cache).__name__}, and an exported model keeps a DynamicCache. Leave cache_implementation"
            " out."
        )


def _refuse_inspection(kwargs: Mapping[str, Any]) -> None:
    asked = [name for name in _INSPECTION if kwargs.get(name)]
    if asked:
        raise ValueError(f"{asked[0]} needs the model in PyTorch. Load the checkpoint that was exported.")


__all__ = ["RuntimeTextModel", "RuntimeVisionModel"]
