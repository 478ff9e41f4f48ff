# SPDX-License-Identifier: BSD-3-Clause
"""NLVR2 model: classifies whether a sentence is true of a pair of images (paper, section 5.5)."""

import os
import re
from typing import Any

from torch import Tensor, nn
from transformers.processing_utils import Unpack
from transformers.utils import can_return_tuple

from ..configuration_blip import BlipTextConfig, BlipVisionConfig, BlipVisualReasoningConfig
from ..objectives import matching_loss
from .base import BlipPreTrainedModel, ForwardKwargs, refuse_unknown, wants_attentions
from .contrastive import BlipContrastiveModel
from .input_checks import refuse_token_types
from .nlvr2_text import BlipNlvr2TextModel
from .outputs import BlipVisualReasoningOutput
from .projection import with_first_token
from .retrieval_training import load_matching_model
from .vision import BlipVisionModel


# Cross-attention parts that NLVR2 has once per image.
_PARTS_PER_IMAGE = r"\.crossattention\.(self|output\.dense)\."


class BlipForVisualReasoning(BlipPreTrainedModel):
    """Classifies whether a sentence is true of two images (NLVR2). Class 1 is true.

    One image encoder encodes both images. Each text layer has separate cross-attention weights for each image.

    Example:
        >>> import torch
        >>> from blip_hf import BlipForVisualReasoning, BlipVisualReasoningConfig
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> config = BlipVisualReasoningConfig(vision_config={**sizes, "image_size": 32}, text_config=sizes)
        >>> model = BlipForVisualReasoning(config).eval()
        >>> model(torch.zeros(3, 2, 3, 32, 32), torch.tensor([[101, 2048, 102]] * 3)).logits.shape
        torch.Size([3, 2])
    """

    config: BlipVisualReasoningConfig
    main_input_name = "pixel_values"
    _no_split_modules = ["BlipVisionLayer", "BlipNlvr2TextLayer"]
    _new_heads_remedy = "load it with BlipForVisualReasoning.from_matcher_pretrained"

    def __init__(self, config: BlipVisualReasoningConfig) -> None:
        super().__init__(config)
        config = self.config
        width = config.text_config.hidden_size
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipNlvr2TextModel(config.text_config, config.merge_from_layer)
        self.cls_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
        self.post_init()

    @classmethod
    def from_matcher_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        image_size: int | None = None,
        vision_fields: dict[str, Any] | None = None,
        text_fields: dict[str, Any] | None = None,
        **config_fields: Any,
    ) -> "BlipForVisualReasoning":
        """Initialises an fp32 model from a checkpoint for single images, as in the paper.

        Both cross-attentions start from the same weights, merge layers and classifier at random. Returns in evaluation
        mode.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Directory or Hub id of a `BlipForPreTraining`, `BlipForImageTextRetrieval` or `BlipForRetrievalTraining`
                checkpoint.
            vision_fields (`dict`, *optional*):
                Fields of `BlipVisionConfig`, such as `drop_path_rate` (0.1 in salesforce/BLIP).
            text_fields (`dict`, *optional*):
                Fields of `BlipTextConfig`, such as dropout.
            **config_fields:
                Fields of `BlipVisualReasoningConfig`, such as `merge_from_layer`.
        """
        matcher = load_matching_model(pretrained_model_name_or_path)
        if isinstance(matcher, BlipContrastiveModel):
            matcher = matcher.export_retriever()
        if image_size is not None:
            matcher.resize_position_embeddings(image_size)
        config = BlipVisualReasoningConfig(
            vision_config=BlipVisionConfig.from_dict(
                {**matcher.config.vision_config.to_dict(), **(vision_fields or {})}
            ),
            text_config=BlipTextConfig.from_dict({**matcher.config.text_config.to_dict(), **(text_fields or {})}),
            **config_fields,
        )
        model = cls(config)
        model.vision_model.load_state_dict(matcher.vision_model.state_dict())
        fresh = {name: value for name, value in model.text_encoder.state_dict().items() if ".merge_layer." in name}
        model.text_encoder.load_state_dict(_copy_per_image(matcher.text_encoder.state_dict()) | fresh)
        return model.eval()

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
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        token_type_ids: Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> BlipVisualReasoningOutput:
        """Classifies sentences about pairs of images.

        Args:
            pixel_values (`torch.Tensor` of shape `(n, 2, 3, height, width)`):
                Normalised pixels of each pair, left image first.
            input_ids (`torch.Tensor` of shape `(n * g, t)`):
                Token ids, `g` consecutive sentences per pair. Position 0 is read as [ENC].
            labels (`torch.Tensor` of shape `(n * g,)`, *optional*):
                1 for true sentences, 0 for false ones. Adds the loss to the output.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to accept another image size than the configured one.
            token_type_ids (`torch.Tensor` of shape `(n * g, t)`, *optional*):
                Zeros, as a BERT tokenizer returns them. BLIP has no token types.
        """
        refuse_unknown(kwargs, self)
        refuse_token_types(token_type_ids, self)
        if pixel_values.dim() != 5 or pixel_values.shape[1] != 2:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, expected (pairs, 2, 3, height, width). Stack the"
                " two images of each pair along axis 1."
            )
        # (n, 2, 3, height, width) -> (2 * n, 3, height, width)
        vision = self.vision_model(
            pixel_values.flatten(0, 1), interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )
        first, second = vision.last_hidden_state.unflatten(0, (-1, 2)).unbind(1)  # each (n, p, d)
        text = self.text_encoder(
            with_first_token(input_ids, self.config.text_config.enc_token_id),
            attention_mask,
            first,
            second,
            cls_only=not wants_attentions(kwargs, self.config.text_config),  # requested attentions cover all tokens
            **kwargs,
        )
        logits = self.cls_head(text.last_hidden_state[:, 0])  # (n * g, 2)
        return BlipVisualReasoningOutput(
            loss=None if labels is None else matching_loss(logits, labels.long()),
            logits=logits,
            hidden_states=vision.hidden_states,
            attentions=vision.attentions,
            cross_attentions=text.cross_attentions,
        )


def _copy_per_image(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies the cross-attention of a text encoder to the names of both images."""
    copied: dict[str, Tensor] = {}
    for name, value in state.items():
        names = {re.sub(_PARTS_PER_IMAGE, rf".crossattention.\g<1>{image}.", name) for image in (0, 1)}
        copied |= dict.fromkeys(names, value)
    return copied


__all__ = ["BlipForVisualReasoning"]
