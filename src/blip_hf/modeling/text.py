# SPDX-License-Identifier: BSD-3-Clause
"""Text transformer in its three roles: encoder, image-grounded encoder, image-grounded decoder (paper, section 3.1).

One set of modules serves all. Without images cross-attention is skipped (encoder); with them it reads an image memory
(image-grounded encoder); with `is_decoder=True` self-attention is causal (image-grounded decoder).
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ..configuration_blip import BlipTextConfig
from ..objectives import captioning_loss
from .attention import ImageMemory, attend, attend_grouped, memory_mask, self_attention_mask, split_heads
from .base import BlipPreTrainedModel, refuse_unknown


class BlipTextEmbeddings(nn.Module):
    """Word and position embeddings; BLIP has no token types."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:
        """Embedded words `(b, t, d)` and positions `(b or 1, t)` -> `(b, t, d)`."""
        return self.dropout(self.LayerNorm(inputs_embeds + self.position_embeddings(position_ids)))


class BlipTextSelfAttention(nn.Module):
    """Attention among the text tokens."""

    def __init__(self, config: BlipTextConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = False  # each call says it
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
    ) -> tuple[Tensor, Tensor | None]:
        """`(b, t, d)` -> `(b, t, d)` and the probabilities of shape `(b, h, t, keys)` where asked for."""
        num_heads = self.config.num_attention_heads
        query, key, value = (
            split_heads(project(hidden_states), num_heads) for project in (self.query, self.key, self.value)
        )
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        return attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_probs_dropout_prob,
            # sdpa takes a mask or the flag; the mask already holds causality.
            is_causal=is_causal and (attention_mask is None or attention_mask.dim() == 2),
            output_attentions=output_attentions,
        )


class BlipTextCrossAttention(nn.Module):
    """Attention from the text tokens to the image memory."""

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
        return (
            split_heads(self.key(encoder_hidden_states), num_heads),
            split_heads(self.value(encoder_hidden_states), num_heads),
        )

    def forward(
        self,
        hidden_states: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        image_index: Tensor | None,
        *,
        output_attentions: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """`(b, t, d)` -> `(b, t, d)` and the probabilities of shape `(b, h, t, p)` where asked for."""
        query = self.query(hidden_states)
        options = {
            "num_heads": self.config.num_attention_heads,
            "dropout": self.config.attention_probs_dropout_prob,
            "output_attentions": output_attentions,
        }
        num_grouped = len(query) - (0 if image_index is None else len(image_index))
        parts = []
        if num_grouped:
            parts.append(attend_grouped(self, query[:num_grouped], key, value, mask, **options))
        if image_index is not None:
            picked = (None if states is None else states.index_select(0, image_index) for states in (key, value, mask))
            parts.append(attend_grouped(self, query[num_grouped:], *picked, **options))
        if len(parts) == 1:
            return parts[0]
        contexts, probabilities = zip(*parts, strict=True)
        return torch.cat(contexts), torch.cat(probabilities) if output_attentions else None


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


class BlipTextAttention(nn.Module):
    """An attention and its residual output, under BERT's names."""

    def __init__(self, attention: nn.Module, config: BlipTextConfig) -> None:
        super().__init__()
        self.self = attention
        self.output = BlipTextResidualOutput(config, config.hidden_size)

    def forward(self, hidden_states: Tensor, *args: Tensor | None, **kwargs: object) -> Tensor:
        """`(b, t, d)` -> `(b, t, d)`."""
        context, _ = self.self(hidden_states, *args, **kwargs)
        return self.output(context, hidden_states)


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
    """Self-attention, cross-attention where there are images, feed-forward; post-norm throughout."""

    def __init__(self, config: BlipTextConfig, layer_idx: int) -> None:
        super().__init__()
        self.attention = BlipTextAttention(BlipTextSelfAttention(config, layer_idx), config)
        if config.is_decoder:
            self.crossattention = BlipTextAttention(BlipTextCrossAttention(config), config)
        self.intermediate = BlipTextIntermediate(config)
        self.output = BlipTextResidualOutput(config, config.intermediate_size)

    # Memory tensors are positional: they carry gradients, which re-entrant checkpointing finds only there.
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        memory_key: Tensor | None,
        memory_value: Tensor | None,
        image_mask: Tensor | None,
        image_index: Tensor | None,
        *,
        past_key_values: Cache | None,
        is_causal: bool,
        output_attentions: bool,
    ) -> Tensor:
        """`(b, t, d)` -> `(b, t, d)`."""
        hidden_states = self.attention(
            hidden_states,
            attention_mask,
            past_key_values=past_key_values,
            is_causal=is_causal,
            output_attentions=output_attentions,
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
    """BERT's pooler, which BLIP never reads; there for checkpoints that carry one."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`(b, t, d)` -> `(b, d)`."""
        return self.dense(hidden_states[:, 0]).tanh()


class BlipTextPreTrainedModel(BlipPreTrainedModel):
    """Base class of the text models."""

    config: BlipTextConfig
    base_model_prefix = "bert"
    input_modalities = ("text",)
    main_input_name = "input_ids"
    _can_record_outputs = {
        "hidden_states": BlipTextLayer,
        "attentions": OutputRecorder(BlipTextSelfAttention, index=1),
        "cross_attentions": OutputRecorder(BlipTextCrossAttention, index=1),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BlipTextLMPredictionHead):
            init.zeros_(module.bias)


class BlipTextModel(BlipTextPreTrainedModel):
    """Text transformer without a head.

    Args:
        config (`BlipTextConfig`):
            Its `is_decoder` says whether layers have cross-attention, as upstream.
        add_pooling_layer (`bool`, *optional*, defaults to `True`):
            Whether to add BERT's pooler.
    """

    def __init__(self, config: BlipTextConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
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
        self, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor | None = None
    ) -> ImageMemory:
        """Projects encoded images to the keys and values that every layer's cross-attention reads.

        Args:
            encoder_hidden_states (`torch.Tensor` of shape `(n, p, encoder_d)`):
                Output of the image encoder (or of the question encoder).
            encoder_attention_mask (`torch.Tensor` of shape `(n, p)`, *optional*):
                0 for padding.

        Returns:
            `ImageMemory`: To be passed as `image_memory` any number of times.
        """
        if not self.config.is_decoder:
            raise ValueError("this text model has no cross-attention: build it with text_config.is_decoder=True.")
        pairs = [layer.crossattention.self.project(encoder_hidden_states) for layer in self.encoder.layer]
        keys, values = zip(*pairs, strict=True)
        return ImageMemory(keys, values, encoder_attention_mask)

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
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Runs the text transformer.

        Args:
            input_ids (`torch.Tensor` of shape `(b, t)`, *optional*):
                Token ids; or give `inputs_embeds` or `encoder_embeds`.
            attention_mask (`torch.Tensor` of shape `(b, t)`, *optional*):
                1 for tokens, 0 for padding, on either side.
            position_ids (`torch.Tensor` of shape `(b, t)`, *optional*):
                Positions, where they are not those of unpadded rows.
            inputs_embeds (`torch.Tensor` of shape `(b, t, d)`, *optional*):
                Word embeddings in place of `input_ids`.
            encoder_embeds (`torch.Tensor` of shape `(b, t, d)`, *optional*):
                Output of the embedding layer in place of `input_ids`.
            encoder_hidden_states (`torch.Tensor` of shape `(n, p, encoder_d)`, *optional*):
                Encoded images; `b` must be a multiple of `n`, the rows of one image being neighbours.
            encoder_attention_mask (`torch.Tensor` of shape `(n, p)`, *optional*):
                0 for padding in `encoder_hidden_states`.
            past_key_values (`Cache`, *optional*):
                Self-attention keys and values of earlier tokens.
            use_cache (`bool`, *optional*):
                Whether to return such a cache; only with `is_decoder`.
            is_decoder (`bool`, *optional*, defaults to `False`):
                Whether self-attention is causal.
            image_memory (`ImageMemory`, *optional*):
                Result of `build_image_memory`, in place of `encoder_hidden_states`.
            image_index (`torch.Tensor` of shape `(r,)`, *optional*):
                Images read by the last `r` rows, by number. The rows before them read all images in order.
            **kwargs:
                `output_attentions`, `output_hidden_states`, `return_dict`.

        Returns:
            `BaseModelOutputWithPoolingAndCrossAttentions`: `last_hidden_state` of shape `(b, t, d)`.

        Raises:
            ValueError: If the inputs are ambiguous, too long, or do not divide among the images.
        """
        refuse_unknown(kwargs, self)
        use_cache = bool(use_cache and is_decoder and not self.training)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        hidden_states = self._embed(input_ids, position_ids, inputs_embeds, encoder_embeds, past_key_values)
        if image_memory is None and encoder_hidden_states is not None:
            image_memory = self.build_image_memory(encoder_hidden_states, encoder_attention_mask)
        _check_rows(hidden_states, image_memory, image_index)

        output_attentions = bool(kwargs.get("output_attentions"))
        implementation = "eager" if output_attentions else self.config._attn_implementation
        mask = self_attention_mask(
            attention_mask, hidden_states, past_key_values, is_causal=is_decoder, implementation=implementation
        )
        image_mask = None if image_memory is None else memory_mask(image_memory, implementation=implementation)
        for idx, layer in enumerate(self.encoder.layer):
            hidden_states = layer(
                hidden_states,
                mask,
                None if image_memory is None else image_memory.keys[idx],
                None if image_memory is None else image_memory.values[idx],
                image_mask,
                image_index,
                past_key_values=past_key_values,
                is_causal=is_decoder,
                output_attentions=output_attentions,
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
            raise ValueError("pass exactly one of input_ids, inputs_embeds and encoder_embeds.")
        if encoder_embeds is not None:
            return encoder_embeds
        if inputs_embeds is None:
            inputs_embeds = self.embeddings.word_embeddings(input_ids)
        if position_ids is None:
            length, limit = inputs_embeds.shape[1], self.config.max_position_embeddings
            if length > limit:
                raise ValueError(f"text has {length} tokens, the model takes at most {limit}. Truncate it.")
            position_ids = torch.arange(length, device=inputs_embeds.device)[None]
            if past_key_values is not None:
                position_ids = position_ids + past_key_values.get_seq_length()
        return self.embeddings(inputs_embeds, position_ids)


def _check_rows(hidden_states: Tensor, image_memory: ImageMemory | None, image_index: Tensor | None) -> None:
    if image_memory is None:
        return
    num_grouped = len(hidden_states) - (0 if image_index is None else len(image_index))
    if num_grouped < 0 or num_grouped % image_memory.num_images:
        raise ValueError(
            f"{num_grouped} text rows do not divide among {image_memory.num_images} images. Pass one text an image, the"
            " same number for each image (the texts of one image next to each other), or name images by image_index."
        )


class BlipTextPredictionHeadTransform(nn.Module):
    """Dense layer before the vocabulary."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`(b, t, d)` -> `(b, t, d)`."""
        return self.LayerNorm(self.activation_fn(self.dense(hidden_states)))


class BlipTextLMPredictionHead(nn.Module):
    """Scores of the vocabulary, tied to the word embeddings but for a bias."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.transform = BlipTextPredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`(b, t, d)` -> `(b, t, v)`."""
        return self.decoder(self.transform(hidden_states))


class BlipTextOnlyMLMHead(nn.Module):
    """Holder of the head, under BERT's names."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.predictions = BlipTextLMPredictionHead(config)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`(b, t, d)` -> `(b, t, v)`."""
        return self.predictions(hidden_states)


class BlipTextLMHeadModel(BlipTextPreTrainedModel, GenerationMixin):
    """Image-grounded text decoder with its language-modelling head."""

    _tied_weights_keys = {
        "cls.predictions.decoder.bias": "cls.predictions.bias",
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    }

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__(config)
        self.bert = BlipTextModel(config, add_pooling_layer=False)
        self.cls = BlipTextOnlyMLMHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.bert.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the word embeddings."""
        self.bert.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The vocabulary projection."""
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces the vocabulary projection and its bias."""
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        return_logits: bool | None = False,
        is_decoder: bool | None = True,
        reduction: str | None = "mean",
        logits_to_keep: int | Tensor = 0,
        image_memory: ImageMemory | None = None,
        image_index: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithCrossAttentions:
        """Scores the next token of each position, and the loss where labels are given.

        Args:
            input_ids (`torch.Tensor` of shape `(b, t)`, *optional*):
                Token ids, [DEC] first.
            attention_mask (`torch.Tensor` of shape `(b, t)`, *optional*):
                0 for padding.
            position_ids (`torch.Tensor` of shape `(b, t)`, *optional*):
                Positions, where they are not those of unpadded rows.
            inputs_embeds (`torch.Tensor` of shape `(b, t, d)`, *optional*):
                Word embeddings in place of `input_ids`.
            encoder_hidden_states (`torch.Tensor` of shape `(n, p, encoder_d)`, *optional*):
                Encoded images.
            encoder_attention_mask (`torch.Tensor` of shape `(n, p)`, *optional*):
                0 for padding in `encoder_hidden_states`.
            labels (`torch.Tensor` of shape `(b, t)`, *optional*):
                Ids of `input_ids`, -100 where there is no loss; shifted here, once.
            past_key_values (`Cache`, *optional*):
                Self-attention keys and values of earlier tokens.
            use_cache (`bool`, *optional*):
                Whether to return such a cache.
            return_logits (`bool`, *optional*, defaults to `False`):
                Whether to return the logits of all positions but the last, and nothing else.
            is_decoder (`bool`, *optional*, defaults to `True`):
                Whether self-attention is causal.
            reduction (`str`, *optional*, defaults to `"mean"`):
                `"mean"` over labelled tokens, `"sum"`, or `"none"` for one sum a row.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
                Last positions to score, or their indices; 0 for all.
            image_memory (`ImageMemory`, *optional*):
                Result of `BlipTextModel.build_image_memory`, in place of `encoder_hidden_states`.
            image_index (`torch.Tensor` of shape `(r,)`, *optional*):
                Images read by the last `r` rows.
            shift_labels (`torch.Tensor` of shape `(b, t)`, *optional*):
                Labels that the caller has already aligned with the logits.
            num_items_in_batch (`int` or `torch.Tensor`, *optional*):
                Labelled tokens of the whole optimiser step; the summed loss is divided by it (gradient accumulation).
            **kwargs:
                `output_attentions`, `output_hidden_states`, `return_dict`.

        Returns:
            `CausalLMOutputWithCrossAttentions`: `loss` and `logits` of shape `(b, t, v)`.
        """
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache and labels is None,
            is_decoder=is_decoder,
            image_memory=image_memory,
            image_index=image_index,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.cls(outputs.last_hidden_state[:, kept])
        if return_logits:
            return logits[:, :-1].contiguous()
        loss = None
        if labels is not None:
            aligned = logits if shift_labels is not None else logits[:, :-1]
            targets = shift_labels if shift_labels is not None else labels[:, 1:]
            loss = captioning_loss(
                aligned,
                targets,
                label_smoothing=self.config.label_smoothing,
                reduction=reduction,
                num_items=num_items_in_batch,
            )
        return CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )


__all__ = ["BlipTextLMHeadModel", "BlipTextModel", "BlipTextPreTrainedModel"]
