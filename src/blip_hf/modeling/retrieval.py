# SPDX-License-Identifier: BSD-3-Clause
"""Image-text retrieval model: cosine similarity of features (ITC) and matching of pairs (ITM)."""

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling, BaseModelOutputWithPoolingAndCrossAttentions
from transformers.processing_utils import Unpack
from transformers.utils import can_return_tuple

from ..configuration_blip import BlipConfig
from ..objectives import matching_loss
from .attention import ImageMemory, expand_text, image_argument
from .base import BlipPreTrainedModel, ForwardKwargs, refuse_unknown
from .input_checks import refuse_token_types
from .outputs import BlipMatchingOutput
from .projection import pool_and_project, with_first_token
from .text import BlipTextModel
from .vision import BlipVisionModel


class BlipForImageTextRetrieval(BlipPreTrainedModel):
    """Compares images and texts by the cosine of their features or by the matching head.

    Drop-in replacement for `transformers.BlipForImageTextRetrieval`; reads and writes the same checkpoints. Matching
    puts [ENC] at position 0, as BLIP was trained; `itm_start_token="cls"` (an argument, or in the configuration) gives
    the scores of transformers.
    """

    config: BlipConfig

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        config = self.config
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
        self.vision_proj = nn.Linear(config.vision_config.hidden_size, config.image_text_hidden_size)
        self.text_proj = nn.Linear(config.text_config.hidden_size, config.image_text_hidden_size)
        self.itm_head = nn.Linear(config.text_config.hidden_size, 2)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the word embeddings."""
        self.text_encoder.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, **kwargs: Unpack[ForwardKwargs]
    ) -> BaseModelOutputWithPooling:
        """Encodes images for comparison with texts.

        Args:
            pixel_values (`torch.Tensor` of shape `(n, 3, height, width)`):
                Normalised pixels.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to accept another image size than the configured one.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` of shape `(n, d)` has the projected and normalised features, whose
            dot products with those of texts are cosines. `last_hidden_state` has the states of [CLS] and each patch.
        """
        vision = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        vision.pooler_output = pool_and_project(vision.last_hidden_state, self.vision_proj)
        return vision

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cls_only: bool = False,
        **kwargs: Unpack[ForwardKwargs],
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Encodes texts for comparison with images.

        Args:
            input_ids (`torch.Tensor` of shape `(m, t)`):
                Token ids, [CLS] first.
            cls_only (`bool`, *optional*, defaults to `False`):
                Whether the last layer computes [CLS] only, which is enough for `pooler_output` and faster.
                `last_hidden_state` then has `t = 1`.

        Returns:
            `BaseModelOutputWithPoolingAndCrossAttentions`: `pooler_output` of shape `(m, d)` has the projected and
            normalised features. `last_hidden_state` has the states of all tokens.
        """
        text = self.text_encoder(input_ids, attention_mask, position_ids, cls_only=cls_only, **kwargs)
        text.pooler_output = pool_and_project(text.last_hidden_state, self.text_proj)
        return text

    def get_image_memory(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> ImageMemory:
        """Encodes images once, for any number of calls of `get_itm_logits`."""
        states = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding).last_hidden_state
        return self.text_encoder.build_image_memory(states)

    def get_itm_logits(
        self,
        image_memory: ImageMemory,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        itm_start_token: str | None = None,
    ) -> Tensor:
        """ITM logits of texts with the `n` encoded images of `get_image_memory`.

        Args:
            input_ids (`torch.Tensor` of shape `(n * g, t)`):
                Token ids, `g` consecutive texts per image: pairs (`g = 1`), or one image with many texts (`n = 1`). One
                text alone is matched with every image.
            image_index (`torch.Tensor` of shape `(r,)`, *optional*):
                Index of the image of each of the last `r` texts. Earlier texts read the images in order.
            itm_start_token (`str`, *optional*, defaults to the configuration's):
                `"enc"` or `"cls"`.

        Returns:
            `torch.Tensor` of shape `(n * g, 2)`: Scores of unmatched and matched.
        """
        text = self._grounded_states(
            image_memory, input_ids, attention_mask, image_index, itm_start_token, cls_only=True
        )
        return self.itm_head(text.last_hidden_state[:, 0])

    def get_multimodal_embeds(
        self,
        image_memory: ImageMemory,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        itm_start_token: str | None = None,
    ) -> Tensor:
        """Text states `(n * g, t, d)` of the image-grounded encoder. Arguments as in `get_itm_logits`, which reads position 0."""
        return self._grounded_states(
            image_memory, input_ids, attention_mask, image_index, itm_start_token
        ).last_hidden_state

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        use_itm_head: bool | None = True,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        labels: Tensor | None = None,
        itm_start_token: str | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> BlipMatchingOutput:
        """Compares images and texts by the matching head or by the cosine of their features.

        Args:
            input_ids (`torch.Tensor` of shape `(m, t)`):
                Token ids, [CLS] first.
            pixel_values (`torch.Tensor` of shape `(n, 3, height, width)`):
                Normalised pixels. The matching head takes `m / n` consecutive texts per image, or one text for all images.
            use_itm_head (`bool`, *optional*, defaults to `True`):
                Whether to run the matching head. If not, returns the cosines of every image with every text.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to accept another image size than the configured one.
            labels (`torch.Tensor` of shape `(m,)`, *optional*):
                1 for matched pairs, 0 for others. Adds the matching loss to the output.
            itm_start_token (`str`, *optional*, defaults to the configuration's):
                `"enc"` or `"cls"`.
            token_type_ids (`torch.Tensor` of shape `(m, t)`, *optional*):
                Zeros, as a BERT tokenizer returns them. BLIP has no token types.
        """
        refuse_unknown(kwargs, self)
        refuse_token_types(token_type_ids, self)
        vision = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        itm_logits = itc_similarity = loss = None
        if use_itm_head:
            images = vision.last_hidden_state
            text = self._grounded_states(images, input_ids, attention_mask, None, itm_start_token, **kwargs)
            itm_logits = self.itm_head(text.last_hidden_state[:, 0])
            loss = None if labels is None else matching_loss(itm_logits, labels)
        elif labels is not None:
            raise ValueError("labels require the matching head. Pass use_itm_head=True, or remove labels.")
        else:
            text = self.text_encoder(input_ids, attention_mask, **kwargs)
            text_features = pool_and_project(text.last_hidden_state, self.text_proj)
            itc_similarity = pool_and_project(vision.last_hidden_state, self.vision_proj) @ text_features.T
        return BlipMatchingOutput(
            itm_score=itm_logits if use_itm_head else itc_similarity,
            loss=loss,
            last_hidden_state=vision.last_hidden_state,
            hidden_states=vision.hidden_states,
            attentions=vision.attentions,
            question_embeds=text.last_hidden_state,
            itm_logits=itm_logits,
            itc_similarity=itc_similarity,
            cross_attentions=text.cross_attentions or None,
        )

    def _grounded_states(
        self,
        images: ImageMemory | Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        image_index: Tensor | None,
        itm_start_token: str | None,
        *,
        cls_only: bool = False,
        **kwargs: Unpack[ForwardKwargs],
    ) -> Any:
        start = itm_start_token if itm_start_token is not None else self.config.itm_start_token
        if start not in ("enc", "cls"):
            raise ValueError(f"itm_start_token is {start!r}, expected 'enc' or 'cls'.")
        if start == "enc":
            input_ids = with_first_token(input_ids, self.config.text_config.enc_token_id)
        num_images = images.num_images if isinstance(images, ImageMemory) else images.shape[0]
        if image_index is None:
            input_ids, attention_mask = expand_text(num_images, input_ids, attention_mask)
        return self.text_encoder(
            input_ids,
            attention_mask,
            image_index=image_index,
            cls_only=cls_only,
            **image_argument(images),
            **kwargs,
        )


__all__ = ["BlipForImageTextRetrieval"]
