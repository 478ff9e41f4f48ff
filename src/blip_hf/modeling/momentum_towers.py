# SPDX-License-Identifier: BSD-3-Clause
"""Averaged copies of the unimodal towers (paper, section 3.2, after ALBEF)."""

import torch
from torch import Tensor, nn

from ..configuration_blip import BlipContrastiveConfig
from .retrieval import pool_and_project
from .text import BlipTextModel
from .vision import BlipVisionModel


class MomentumEncoder(nn.Module):
    """Averages of the unimodal towers and their projections; the source of contrastive keys. Not trained."""

    def __init__(self, config: BlipContrastiveConfig) -> None:
        super().__init__()
        # Only the unimodal role is ever run, so there is no cross-attention to keep.
        text_config = type(config.text_config).from_dict({**config.text_config.to_dict(), "is_decoder": False})
        text_config._attn_implementation = config.text_config._attn_implementation
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(text_config, add_pooling_layer=False)
        self.vision_proj = nn.Linear(config.vision_config.hidden_size, config.image_text_hidden_size)
        self.text_proj = nn.Linear(config.text_config.hidden_size, config.image_text_hidden_size)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Momentum image and text features, each of shape `(b, d)`."""
        image_embeds = self.vision_model(pixel_values).last_hidden_state
        text_embeds = self.text_encoder(input_ids, attention_mask, cls_only=True).last_hidden_state
        return pool_and_project(image_embeds, self.vision_proj), pool_and_project(text_embeds, self.text_proj)


__all__ = ["MomentumEncoder"]
