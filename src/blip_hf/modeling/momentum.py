# SPDX-License-Identifier: BSD-3-Clause
"""Momentum encoder, its EMA update, and the queue of its features (paper, section 3.2, after ALBEF)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..configuration_blip import BlipContrastiveConfig
from ..distributed import gather
from .projection import pool_and_project
from .text import BlipTextModel
from .vision import BlipVisionModel


# Image id of pairs whose image is unknown.
UNKNOWN_IMAGE = -100
# File of the momentum encoder and the queue in a training checkpoint.
MOMENTUM_STATE_NAME = "momentum_state.safetensors"


def image_ids_or_unknown(image_ids: Tensor | None, rows: Tensor) -> Tensor:
    """The given image ids, or `UNKNOWN_IMAGE` for each row."""
    if image_ids is not None:
        return image_ids
    return torch.full((rows.shape[0],), UNKNOWN_IMAGE, device=rows.device)


@torch.no_grad()
def ema_update_(targets: Sequence[Tensor], sources: Sequence[Tensor], momentum: float) -> None:
    """EMA step in place: `target <- momentum * target + (1 - momentum) * source`."""
    torch._foreach_lerp_(list(targets), [source.detach() for source in sources], 1 - momentum)


class FeatureQueue(nn.Module):
    """Ring buffer of momentum features of past batches: additional keys of ITC.

    Starts with random unit vectors, as salesforce/BLIP does. Batches may have any size; a size of 0 keeps nothing.
    """

    image_features: Tensor
    text_features: Tensor
    image_ids: Tensor
    num_enqueued: Tensor
    counts: bool = True  # whether its features are keys in training; they always are in evaluation

    def __init__(self, size: int, feature_size: int) -> None:
        super().__init__()
        self.register_buffer("image_features", torch.zeros(size, feature_size))
        self.register_buffer("text_features", torch.zeros(size, feature_size))
        self.register_buffer("image_ids", torch.full((size,), UNKNOWN_IMAGE))
        self.register_buffer("num_enqueued", torch.zeros((), dtype=torch.long))

    @property
    def size(self) -> int:
        """Capacity in pairs."""
        return len(self.image_features)

    @property
    def pointer(self) -> Tensor:
        """Next position to write, a scalar."""
        return self.num_enqueued % max(self.size, 1)

    @property
    def fill(self) -> Tensor:
        """Fraction of the queue that was enqueued, a scalar; the rest is random."""
        return (self.num_enqueued / max(self.size, 1)).clamp(max=1)

    def keys_and_ids(self) -> tuple[Tensor, Tensor, Tensor]:
        """Image keys `(q, d)`, text keys `(q, d)` and their image ids `(q,)`. `q` is 0 if the queue does not count."""
        size = self.size if self.counts or not self.training else 0
        return self.image_features[:size], self.text_features[:size], self.image_ids[:size]

    @torch.no_grad()
    def enqueue(self, image_features: Tensor, text_features: Tensor, image_ids: Tensor | None = None) -> None:
        """Replaces the oldest entries by a batch, gathered over all processes."""
        batch = (image_features, text_features, image_ids_or_unknown(image_ids, image_features))
        rows = [gather(part) for part in batch]
        count = len(rows[0])
        kept = min(count, self.size)
        offsets = torch.arange(count - kept, count, device=self.num_enqueued.device)
        positions = (self.num_enqueued + offsets) % max(self.size, 1)
        for ring, row in zip((self.image_features, self.text_features, self.image_ids), rows, strict=True):
            ring.index_copy_(0, positions, row[count - kept :].to(ring.dtype))
        self.num_enqueued += count


class MomentumEncoder(nn.Module):
    """EMA of the image encoder, the unimodal text encoder and their projections; computes the contrastive keys."""

    def __init__(self, config: BlipContrastiveConfig) -> None:
        super().__init__()
        # Only the unimodal role is used, so there is no cross-attention.
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


__all__ = [
    "MOMENTUM_STATE_NAME",
    "UNKNOWN_IMAGE",
    "FeatureQueue",
    "MomentumEncoder",
    "ema_update_",
    "image_ids_or_unknown",
]
