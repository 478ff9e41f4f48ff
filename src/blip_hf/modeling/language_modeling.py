# SPDX-License-Identifier: BSD-3-Clause
"""Image-grounded text decoder with its language-modelling head."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, can_return_tuple

from ..configuration_blip import BlipTextConfig
from ..objectives import captioning_loss
from .attention import ImageMemory
from .base import ForwardKwargs
from .text import BlipTextModel, BlipTextPreTrainedModel


class LanguageModelingKwargs(ForwardKwargs, total=False):
    """Keyword arguments of `forward`. Trainer would expect labels of the signature in every batch."""

    shift_labels: Tensor | None


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
    """Vocabulary logits; the weight is tied to the word embeddings."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.transform = BlipTextPredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`(b, t, d)` -> `(b, t, v)`."""
        return self.decoder(self.transform(hidden_states))


class BlipTextOnlyMLMHead(nn.Module):
    """Container of the head, with BERT's names."""

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
        config = self.config
        self.bert = BlipTextModel(config, add_pooling_layer=False)
        self.cls = BlipTextOnlyMLMHead(config)
        self.post_init()

    @property
    def label_smoothing(self) -> float:
        """Label smoothing of the loss, stored in the configuration."""
        return self.config.label_smoothing

    @label_smoothing.setter
    def label_smoothing(self, value: float) -> None:
        self.config.label_smoothing = value

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BlipTextLMPredictionHead):
            init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.bert.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the word embeddings."""
        self.bert.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The vocabulary projection."""
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the vocabulary projection and its bias."""
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generates texts as in `GenerationMixin`.

        Returns:
            As in `GenerationMixin`. With `output_attentions` and `return_dict_in_generate`, the output also has
            `cross_attentions`: for each new token, those of each layer, of shape `(rows, h, t, p)`.
        """
        cross_attentions: list[tuple[Tensor, ...]] = []
        # The assistant of assisted generation gets a copy of its target's options, including this list.
        options = {**kwargs, "collected_cross_attentions": cross_attentions}
        output: Any = super().generate(*args, **options)  # type: ignore[misc]  # no class fits its protocol
        if cross_attentions and isinstance(output, ModelOutput):
            # On CUDA, transformers may run a step too many and drop it.
            output["cross_attentions"] = tuple(cross_attentions[: len(output["attentions"])])
        return output

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Collects the cross-attentions of a step, which transformers does for encoder-decoder configurations only."""
        if outputs.cross_attentions is not None:
            model_kwargs["collected_cross_attentions"].append(outputs.cross_attentions)
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        *args: Any,
        inputs_embeds: Tensor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        collected_cross_attentions: list[tuple[Tensor, ...]] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Inputs of one step of generation."""
        # `generate` takes `inputs_embeds` only if this signature has it.
        given: Any = (input_ids, *args)
        return super().prepare_inputs_for_generation(  # type: ignore[misc]  # no class fits its protocol
            *given, inputs_embeds=inputs_embeds, **kwargs
        )

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
        reduction: str = "mean",
        logits_to_keep: int | Tensor = 0,
        image_memory: ImageMemory | None = None,
        image_index: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        skip_last: bool = False,
        token_type_ids: Tensor | None = None,
        **kwargs: Unpack[LanguageModelingKwargs],
    ) -> CausalLMOutputWithCrossAttentions:
        """Computes the next-token logits of each position, and the loss if labels are given.

        Args:
            input_ids (`torch.Tensor` of shape `(b, t)`, *optional*):
                Token ids, [DEC] first.
            inputs_embeds (`torch.Tensor` of shape `(b, t, d)`, *optional*):
                Word embeddings, instead of `input_ids`.
            encoder_hidden_states (`torch.Tensor` of shape `(n, p, encoder_d)`, *optional*):
                Encoded images.
            labels (`torch.Tensor` of shape `(b, t)`, *optional*):
                Token ids, -100 at positions without loss. They are shifted here.
            past_key_values (`Cache`, *optional*):
                Self-attention keys and values of earlier tokens.
            return_logits (`bool`, *optional*, defaults to `False`):
                Whether to return only the logits of all positions but the last, as a tensor.
            is_decoder (`bool`, *optional*, defaults to `True`):
                Whether self-attention is causal.
            reduction (`str`, *optional*, defaults to `"mean"`):
                `"mean"` over labelled tokens, `"sum"`, or `"none"` for one sum per row.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
                Number of last positions to compute logits for, or indices of positions; 0 for all.
            image_memory (`ImageMemory`, *optional*):
                Result of `BlipTextModel.build_image_memory`, instead of `encoder_hidden_states`.
            image_index (`torch.Tensor` of shape `(r,)`, *optional*):
                Images that the last `r` rows read.
            num_items_in_batch (`int` or `torch.Tensor`, *optional*):
                Labelled tokens of the whole optimiser step, which divide the summed loss (gradient accumulation).
            skip_last (`bool`, *optional*, defaults to `False`):
                Whether to skip the last token if labels are given, as it predicts no label. Logits then have the shape
                `(b, t - 1, v)`. Not supported with `position_ids`, `inputs_embeds` or `shift_labels`.
            token_type_ids (`torch.Tensor` of shape `(b, t)`, *optional*):
                Zeros, as a BERT tokenizer returns them. BLIP has no token types.
            **kwargs:
                `output_attentions`, `output_hidden_states`, `return_dict`, and `shift_labels` of shape `(b, t)`: labels
                already aligned with the logits.
        """
        shift_labels = kwargs.pop("shift_labels", None)
        if skip_last and labels is not None:
            if input_ids is None:
                raise ValueError("skip_last needs input_ids. Pass them, or leave out skip_last.")
            input_ids, shift_labels = input_ids[:, :-1], labels[:, 1:]
            attention_mask = None if attention_mask is None else attention_mask[:, :-1]
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache if labels is None else False,
            is_decoder=is_decoder,
            image_memory=image_memory,
            image_index=image_index,
            token_type_ids=token_type_ids,
            return_dict=True,  # both models have one configuration
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.cls(outputs.last_hidden_state[:, kept])
        if return_logits:
            return logits[:, :-1].contiguous()
        loss = None
        if labels is not None:
            # Shift the labels: shifting the logits would copy them and their gradient.
            shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=-100) if shift_labels is None else shift_labels
            loss = captioning_loss(
                logits,
                shifted,
                num_items=num_items_in_batch,
                label_smoothing=self.label_smoothing,
                reduction=reduction,
            )
        return CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )


__all__ = ["BlipTextLMHeadModel", "LanguageModelingKwargs"]
