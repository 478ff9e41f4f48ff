# SPDX-License-Identifier: BSD-3-Clause
"""Layers of the text transformer, with BERT's names: self-attention, cross-attention, feed-forward."""

from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration_blip import BlipTextConfig
from .attention import attend, attend_grouped, grouped_context, grouped_probabilities, split_heads
from .recompute import recompute_in_backward


_Attention = TypeVar("_Attention", bound=nn.Module)


class BlipTextEmbeddings(nn.Module):
    """Word and position embeddings; BLIP has no token types."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.word_embeddings: nn.Module = nn.Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:
        """Embedded words `(b, t, d)` and positions `(b or 1, t)` -> `(b, t, d)`."""
        return self.dropout(self.LayerNorm(inputs_embeds + self.position_embeddings(position_ids)))


class BlipTextSelfAttention(nn.Module):
    """Self-attention of the text tokens."""

    def __init__(self, config: BlipTextConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = False  # an argument of each call
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        *,
        past_key_values: Cache | None,
        is_causal: bool,
        output_attentions: bool,
        cls_only: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """`(b, t, d)` -> `(b, t or 1, d)` and optional probabilities of shape `(b, h, t or 1, keys)`."""
        num_heads = self.config.num_attention_heads
        query = split_heads(self.query(hidden_states[:, :1] if cls_only else hidden_states), num_heads)
        if cls_only and attention_mask is not None and attention_mask.dim() == 4:
            attention_mask = attention_mask[:, :, :1]
        key, value = (split_heads(project(hidden_states), num_heads) for project in (self.key, self.value))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        return attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_probs_dropout_prob,
            # sdpa accepts a mask or this flag; the mask already includes causality.
            is_causal=is_causal and (attention_mask is None or attention_mask.dim() == 2),
            output_attentions=output_attentions,
        )


class BlipTextCrossAttention(nn.Module):
    """Cross-attention from the text tokens to the image memory."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.is_causal = False
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.encoder_hidden_size, config.hidden_size)
        self.value = nn.Linear(config.encoder_hidden_size, config.hidden_size)

    def project(self, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Image states `(n, p, encoder_d)` -> keys and values of shape `(n, h, p, head_dim)`."""
        num_heads = self.config.num_attention_heads
        key, value = self.key(encoder_hidden_states), self.value(encoder_hidden_states)
        return split_heads(key, num_heads), split_heads(value, num_heads)

    def forward(
        self,
        hidden_states: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        image_index: Tensor | None = None,
        *,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """`(b, t, d)` -> `(b, t, d)` and optional probabilities of shape `(b, h, t, p)`."""
        if output_attentions:
            if image_index is not None:
                index = image_of_each_row(image_index, key.shape[0], hidden_states.shape[0])
                key, value, mask = _pick(key, value, mask, index)
            probabilities = self.probabilities(hidden_states, key, mask)
            return self.context(probabilities, value), probabilities
        query = self.query(hidden_states)
        if image_index is None:
            return self._attend(query, key, value, mask), None
        # Recompute in backward, which would keep a copy of keys and values for each layer.
        num_grouped = query.shape[0] - image_index.shape[0]
        context = recompute_in_backward(self, self._attend_picked, query[num_grouped:], key, value, mask, image_index)
        if num_grouped:
            context = torch.cat([self._attend(query[:num_grouped], key, value, mask), context])
        return context, None

    def probabilities(self, hidden_states: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """Attention probabilities `(b, h, t, p)`, for `context`: their gradient is that of the output (Grad-CAM)."""
        return grouped_probabilities(self.query(hidden_states), key, mask, num_heads=self.config.num_attention_heads)

    def context(self, probabilities: Tensor, value: Tensor) -> Tensor:
        """Values weighted by probabilities: `(b, h, t, p)` -> `(b, t, d)`."""
        dropout = self.config.attention_probs_dropout_prob
        return grouped_context(nn.functional.dropout(probabilities, dropout, training=self.training), value)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        num_heads, dropout = self.config.num_attention_heads, self.config.attention_probs_dropout_prob
        return attend_grouped(self, query, key, value, mask, num_heads=num_heads, dropout=dropout)

    def _attend_picked(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, image_index: Tensor
    ) -> Tensor:
        """Cross-attention of text rows to the images at `image_index`."""
        return self._attend(query, *_pick(key, value, mask, image_index))


def image_of_each_row(image_index: Tensor, num_images: int, num_rows: int) -> Tensor:
    """Images that all rows read, given those of the last rows: `(r,)` -> `(num_rows,)`."""
    group = (num_rows - image_index.shape[0]) // num_images
    in_order = torch.arange(num_images, device=image_index.device).repeat_interleave(group)
    return torch.cat([in_order, image_index])


def _pick(
    key: Tensor, value: Tensor, mask: Tensor | None, image_index: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    picked_mask = None if mask is None else mask.index_select(0, image_index)
    return key.index_select(0, image_index), value.index_select(0, image_index), picked_mask


class BlipTextResidualOutput(nn.Module):
    """Dense, dropout, residual and layer norm: the end of each sub-layer."""

    def __init__(self, config: BlipTextConfig, input_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        """`(b, t, input_size)` and `(b, t, d)` -> `(b, t, d)`."""
        return self.LayerNorm(self.dropout(self.dense(hidden_states)) + residual)


class BlipTextAttention(nn.Module, Generic[_Attention]):
    """Attention followed by its residual output, with BERT's names."""

    def __init__(self, attention: _Attention, config: BlipTextConfig) -> None:
        super().__init__()
        self.self = attention
        self.output = BlipTextResidualOutput(config, config.hidden_size)

    def forward(self, hidden_states: Tensor, *args: Tensor | None, **kwargs: object) -> Tensor:
        """`(b, t, d)` -> `(b, t, d)`, or fewer positions with `cls_only`."""
        context, _ = self.self(hidden_states, *args, **kwargs)
        return self.output(context, hidden_states[:, : context.shape[1]])


class BlipTextIntermediate(nn.Module):
    """First half of the feed-forward block."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`(b, t, d)` -> `(b, t, intermediate)`."""
        return self.activation_fn(self.dense(hidden_states))


class BlipTextLayer(GradientCheckpointingLayer):
    """Self-attention, cross-attention if there are images, feed-forward; post-norm."""

    def __init__(self, config: BlipTextConfig, layer_idx: int) -> None:
        super().__init__()
        self.attention = BlipTextAttention(BlipTextSelfAttention(config, layer_idx), config)
        if config.is_decoder:
            self.crossattention = BlipTextAttention(BlipTextCrossAttention(config), config)
        self.intermediate = BlipTextIntermediate(config)
        self.output = BlipTextResidualOutput(config, config.intermediate_size)

    def project_images(self, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of images for `forward`, which may be shared by several calls."""
        if self.training:
            # Gradient checkpointing, which is part of `__call__`, would keep the result and still compute it twice.
            return self.crossattention.self.project(encoder_hidden_states)
        # FSDP gathers the weights of a layer in its `__call__`.
        return self(None, None, encoder_hidden_states, None, None, None, None)

    # Image tensors are positional because re-entrant checkpointing finds gradients only there.
    def forward(
        self,
        hidden_states: Tensor | None,
        attention_mask: Tensor | None,
        encoder_hidden_states: Tensor | None,
        memory_key: Tensor | None,
        memory_value: Tensor | None,
        image_mask: Tensor | None,
        image_index: Tensor | None,
        *,
        past_key_values: Cache | None = None,
        is_causal: bool = False,
        output_attentions: bool = False,
        cls_only: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """`(b, t, d)` -> `(b, t, d)`, with `cls_only` -> `(b, 1, d)`.

        Reads images from their states `(n, p, encoder_d)` or from projected keys and values. Without text, projects.
        """
        if encoder_hidden_states is not None:
            memory_key, memory_value = self.crossattention.self.project(encoder_hidden_states)
            if hidden_states is None:
                return memory_key, memory_value
        hidden_states = self.attention(
            hidden_states,
            attention_mask,
            past_key_values=past_key_values,
            is_causal=is_causal,
            output_attentions=output_attentions,
            cls_only=cls_only,
        )
        if memory_key is not None:
            hidden_states = self.crossattention(
                hidden_states, memory_key, memory_value, image_mask, image_index, output_attentions=output_attentions
            )
        return self.output(self.intermediate(hidden_states), hidden_states)


class BlipTextEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList([BlipTextLayer(config, idx) for idx in range(config.num_hidden_layers)])


class BlipTextPooler(nn.Module):
    """BERT's pooler, unused by BLIP; keeps checkpoints that contain one loadable."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`(b, t, d)` -> `(b, d)`."""
        return self.dense(hidden_states[:, 0]).tanh()


__all__ = [
    "BlipTextCrossAttention",
    "BlipTextEmbeddings",
    "BlipTextEncoder",
    "BlipTextLayer",
    "BlipTextPooler",
    "BlipTextSelfAttention",
    "image_of_each_row",
]
