# SPDX-License-Identifier: BSD-3-Clause
"""Text transformer of NLVR2: cross-attention to two images, averaged in lower layers and merged in upper ones.

    first image ── self0 ── dense0 ─┐
    text ────────┤                  ├─ average, or concatenate and merge ─ + text ─ LayerNorm
    second image ─ self1 ── dense1 ─┘

See the paper, section 5.5 and figure 5. Parameter names follow the original checkpoints.
"""

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.processing_utils import Unpack
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ..configuration_blip import BlipTextConfig
from .attention import self_attention_mask
from .base import ForwardKwargs, refuse_unknown, wants_attentions
from .input_checks import refuse_long_text
from .text import BlipTextPreTrainedModel
from .text_layers import (
    BlipTextAttention,
    BlipTextCrossAttention,
    BlipTextEmbeddings,
    BlipTextIntermediate,
    BlipTextResidualOutput,
    BlipTextSelfAttention,
)


class BlipNlvr2Output(nn.Module):
    """A dense layer per image, their average or learnt merge, residual and layer norm."""

    def __init__(self, config: BlipTextConfig, *, has_merge_layer: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.dense0 = nn.Linear(width, width)
        self.dense1 = nn.Linear(width, width)
        self.merge_layer = nn.Linear(2 * width, width) if has_merge_layer else None
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, first: Tensor, second: Tensor, residual: Tensor) -> Tensor:
        """Contexts of the two images and the text, each `(b, t, d)` -> `(b, t, d)`."""
        first, second = self.dense0(first), self.dense1(second)
        if self.merge_layer is None:
            merged = (first + second) / 2
        else:
            merged = self.merge_layer(torch.cat([first, second], dim=-1))  # (b, t, 2 * d) -> (b, t, d)
        return self.LayerNorm(self.dropout(merged) + residual)


class BlipNlvr2CrossAttention(nn.Module):
    """Attention to two images with separate weights."""

    def __init__(self, config: BlipTextConfig, *, has_merge_layer: bool) -> None:
        super().__init__()
        self.self0 = BlipTextCrossAttention(config)
        self.self1 = BlipTextCrossAttention(config)
        self.output = BlipNlvr2Output(config, has_merge_layer=has_merge_layer)

    def forward(
        self, hidden_states: Tensor, first_states: Tensor, second_states: Tensor, *, output_attentions: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Text and the states of both images -> `(b, t, d)` and optional probabilities of shape `(b, 2, h, t, p)`."""
        attentions = (self.self0, self.self1)
        first, second = self.self0.project(first_states), self.self1.project(second_states)
        keys, values = zip(first, second, strict=True)
        if output_attentions:
            weights = [
                part.probabilities(hidden_states, key, None) for part, key in zip(attentions, keys, strict=True)
            ]
            probabilities = torch.stack(weights, dim=1)
            weighted = zip(attentions, probabilities.unbind(1), values, strict=True)
            contexts = [part.context(weights, value) for part, weights, value in weighted]
            return self.output(*contexts, hidden_states), probabilities
        parts = zip(attentions, keys, values, strict=True)
        contexts = [part(hidden_states, key, value)[0] for part, key, value in parts]
        return self.output(*contexts, hidden_states), None


class BlipNlvr2TextLayer(GradientCheckpointingLayer):
    """Self-attention, cross-attention to two images, feed-forward; post-norm."""

    def __init__(self, config: BlipTextConfig, layer_idx: int, *, has_merge_layer: bool) -> None:
        super().__init__()
        self.attention = BlipTextAttention(BlipTextSelfAttention(config, layer_idx), config)
        self.crossattention = BlipNlvr2CrossAttention(config, has_merge_layer=has_merge_layer)
        self.intermediate = BlipTextIntermediate(config)
        self.output = BlipTextResidualOutput(config, config.intermediate_size)

    # Image states are positional because re-entrant checkpointing finds gradients only there.
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        first_states: Tensor,
        second_states: Tensor,
        *,
        output_attentions: bool,
        cls_only: bool,
    ) -> Tensor:
        """`(b, t, d)` -> `(b, t, d)`, with `cls_only` -> `(b, 1, d)`."""
        hidden_states = self.attention(
            hidden_states,
            attention_mask,
            past_key_values=None,
            is_causal=False,
            output_attentions=output_attentions,
            cls_only=cls_only,
        )
        hidden_states, _ = self.crossattention(
            hidden_states, first_states, second_states, output_attentions=output_attentions
        )
        return self.output(self.intermediate(hidden_states), hidden_states)


class BlipNlvr2TextEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: BlipTextConfig, merge_from_layer: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            BlipNlvr2TextLayer(config, idx, has_merge_layer=idx >= merge_from_layer)
            for idx in range(config.num_hidden_layers)
        )


class BlipNlvr2TextModel(BlipTextPreTrainedModel):
    """Text encoder grounded in two images."""

    _no_split_modules = ["BlipNlvr2TextLayer"]
    _can_record_outputs = {
        "hidden_states": BlipNlvr2TextLayer,
        "attentions": OutputRecorder(BlipTextSelfAttention, index=1),
        "cross_attentions": OutputRecorder(BlipNlvr2CrossAttention, index=1),
    }

    def __init__(self, config: BlipTextConfig, merge_from_layer: int) -> None:
        super().__init__(config)
        config = self.config
        self.embeddings = BlipTextEmbeddings(config)
        self.encoder = BlipNlvr2TextEncoder(config, merge_from_layer)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the word embeddings."""
        self.embeddings.word_embeddings = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        first_states: Tensor,
        second_states: Tensor,
        cls_only: bool = False,
        **kwargs: Unpack[ForwardKwargs],
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Encodes texts grounded in pairs of images: `(n * g, t)` -> `(n * g, t, d)`, `g` consecutive texts per pair.

        `first_states` and `second_states` are the states of both images, each `(n, p, encoder_d)`.
        """
        refuse_unknown(kwargs, self)
        num_texts, length = input_ids.shape
        refuse_long_text(length, self.config)
        _check_texts(num_texts, first_states.shape[0])
        positions = torch.arange(length, device=input_ids.device)[None]
        hidden_states = self.embeddings(self.embeddings.word_embeddings(input_ids), positions)
        output_attentions = wants_attentions(kwargs, self.config)
        mask = self_attention_mask(
            attention_mask,
            hidden_states,
            None,
            is_causal=False,
            implementation="eager" if output_attentions else self.config._attn_implementation,
        )
        last = len(self.encoder.layer) - 1
        for idx, layer in enumerate(self.encoder.layer):
            hidden_states = layer(
                hidden_states,
                mask,
                first_states,
                second_states,
                output_attentions=output_attentions,
                cls_only=cls_only and idx == last,
            )
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=hidden_states)


def _check_texts(num_texts: int, num_pairs: int) -> None:
    if torch.jit.is_tracing():  # a trace has no branches
        return
    if num_texts % num_pairs:
        raise ValueError(
            f"{num_texts} texts do not divide among {num_pairs} pairs of images. Pass one text per pair, or the same"
            " number of consecutive texts for each pair."
        )


__all__ = ["BlipNlvr2TextModel"]
