# SPDX-License-Identifier: BSD-3-Clause
"""CLIP-like dual encoder: images and texts are compared by the scaled cosines of their projected features."""

import math
import os

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, BaseModelOutputWithPoolingAndCrossAttentions
from transformers.processing_utils import Unpack
from transformers.utils import can_return_tuple

from ..configuration_blip import BlipConfig, BlipContrastiveConfig
from ..objectives import image_text_contrastive_loss
from .attention import expand_text
from .base import BlipPreTrainedModel, ForwardKwargs, refuse_unknown
from .contrastive import BlipContrastiveModel
from .dual_encoder_weights import dual_encoder_state_dict
from .outputs import BlipOutput
from .projection import with_first_token
from .retrieval import BlipForImageTextRetrieval
from .retrieval_training import load_matching_model
from .text import BlipTextModel
from .vision import BlipVisionModel


class BlipModel(BlipPreTrainedModel):
    """Compares images and texts as CLIP does, for zero-shot image classification.

    Drop-in replacement for `transformers.BlipModel`; reads and writes the same checkpoints. No released checkpoint has
    this class: `from_matcher_pretrained` converts one of `BlipForImageTextRetrieval`. Fine-tune the matcher itself, by
    `BlipForRetrievalTraining`, rather than the converted model.
    """

    config: BlipConfig
    _new_heads_remedy = "convert a checkpoint of BlipForImageTextRetrieval with BlipModel.from_matcher_pretrained"

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        config = self.config
        # Attributes that clients of transformers read.
        self.projection_dim = config.projection_dim
        self.text_embed_dim = config.text_config.hidden_size
        self.vision_embed_dim = config.vision_config.hidden_size

        self.text_model = BlipTextModel(config.text_config)
        self.vision_model = BlipVisionModel(config.vision_config)
        self.visual_projection = nn.Linear(self.vision_embed_dim, self.projection_dim, bias=False)
        self.text_projection = nn.Linear(self.text_embed_dim, self.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.logit_scale, self.config.logit_scale_init_value)

    @classmethod
    def from_matcher(
        cls, matcher: BlipForImageTextRetrieval | BlipContrastiveModel, temperature: float | None = None
    ) -> "BlipModel":
        """Converts a retrieval model to a dual encoder with the same cosines of images and texts.

        The result has copies of all weights but the ITM head. Layer norm, projections and pooler get other values that
        compute the same features in the form of `transformers.BlipModel`, which can load the result. The cosines agree to
        rounding. In fp16 the small weights of the pooler lose precision.

        Args:
            matcher (`BlipForImageTextRetrieval`, `BlipForRetrievalTraining` or `BlipForPreTraining`):
                The model to convert. It is not changed.
            temperature (`float`, *optional*):
                Divisor of the cosines. Defaults to the learnt one, or to 0.07, BLIP's initial value, for a
                `BlipForImageTextRetrieval`, which does not store it.

        Returns:
            `BlipModel`: The dual encoder, in evaluation mode.

        Raises:
            TypeError: If the model is of another class.
            ValueError: If the temperature is not positive, or the features are wider than the text transformer.
        """
        if isinstance(matcher, BlipContrastiveModel):
            temperature = matcher.temp.item() if temperature is None else temperature
            matcher = matcher.export_retriever()
        if not isinstance(matcher, BlipForImageTextRetrieval):
            raise TypeError(
                f"matcher is a {type(matcher).__module__}.{type(matcher).__name__}, expected a BlipForImageTextRetrieval,"
                " BlipForRetrievalTraining or BlipForPreTraining of blip_hf. Load its checkpoint with from_matcher_pretrained."
            )
        if temperature is None:
            temperature = BlipContrastiveConfig.temperature_init_value
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}, expected a positive number such as 0.07.")
        fields = matcher.config.to_dict() | {"projection_dim": matcher.config.image_text_hidden_size}
        fields.pop("architectures")
        model = cls(BlipConfig.from_dict(fields)).to(matcher.device, matcher.dtype)
        logit_scale = torch.full_like(model.logit_scale, -math.log(temperature))
        model.load_state_dict(dual_encoder_state_dict(matcher) | {"logit_scale": logit_scale})
        return model.eval()

    @classmethod
    def from_matcher_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, temperature: float | None = None
    ) -> "BlipModel":
        """Loads a retrieval model in fp32 and converts it by `from_matcher`.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Directory or Hub id of a `BlipForImageTextRetrieval`, `BlipForRetrievalTraining` or `BlipForPreTraining`
                checkpoint.
            temperature (`float`, *optional*):
                As in `from_matcher`.

        Returns:
            `BlipModel`: The dual encoder, in evaluation mode.
        """
        return cls.from_matcher(load_matching_model(pretrained_model_name_or_path), temperature)

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the word embeddings."""
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Encodes texts of shape `(m, t)` that start with [CLS].

        Returns:
            `BaseModelOutputWithPoolingAndCrossAttentions`: `pooler_output` of shape `(m, d)` has the projected features, not
            normalised, as in transformers.
        """
        text = self.text_model(input_ids, attention_mask, position_ids, **kwargs)
        text.pooler_output = self.text_projection(text.pooler_output)
        return text

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[ForwardKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encodes images of shape `(n, 3, height, width)`.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` of shape `(n, d)` has the projected features, not normalised, as in
            transformers.
        """
        vision = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        vision.pooler_output = self.visual_projection(vision.pooler_output)
        return vision

    def get_multimodal_features(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> Tensor:
        """Projected features `(m, d)` of texts that read their images, `m / n` consecutive texts for each image.

        As in matching, the text starts with [ENC] unless `config.itm_start_token` is `"cls"`, as in transformers.
        """
        states = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding).last_hidden_state
        if self.config.itm_start_token == "enc":
            input_ids = with_first_token(input_ids, self.config.text_config.enc_token_id)
        input_ids, attention_mask = expand_text(states.shape[0], input_ids, attention_mask)
        text = self.text_model(input_ids, attention_mask, encoder_hidden_states=states, cls_only=True)
        return self.text_projection(text.pooler_output)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        token_type_ids: Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> BlipOutput:
        """Compares every image with every text.

        Args:
            input_ids (`torch.Tensor` of shape `(m, t)`):
                Token ids, [CLS] first.
            pixel_values (`torch.Tensor` of shape `(n, 3, height, width)`):
                Normalised pixels.
            position_ids (`torch.Tensor` of shape `(m, t)`, *optional*):
                Positions of the tokens, by default from 0.
            return_loss (`bool`, *optional*):
                Whether to compute the contrastive loss of pairs: text `i` belongs to image `i`.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to accept another image size than the configured one.
            token_type_ids (`torch.Tensor` of shape `(m, t)`, *optional*):
                Zeros, as a BERT tokenizer returns them. BLIP has no token types.
        """
        refuse_unknown(kwargs, self)
        vision = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        text = self.text_model(input_ids, attention_mask, position_ids, token_type_ids=token_type_ids, **kwargs)
        image_embeds = normalize(self.visual_projection(vision.pooler_output), dim=-1)
        text_embeds = normalize(self.text_projection(text.pooler_output), dim=-1)
        logits_per_text = text_embeds @ image_embeds.T * self.logit_scale.exp()  # (m, n)
        return BlipOutput(
            loss=image_text_contrastive_loss(logits_per_text) if return_loss else None,
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text,
            vision_model_output=vision,
        )


__all__ = ["BlipModel"]
