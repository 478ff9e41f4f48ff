# SPDX-License-Identifier: BSD-3-Clause
"""Attention of the image encoder and the text transformer, the image memory, and masks.

Letters: `b` rows, `t` text tokens, `p` image tokens, `h` heads, `d` width, `g` text rows of each image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, overload

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


@dataclass(frozen=True)
class ImageMemory:
    """Cross-attention keys and values of encoded images, `(n, h, p, head_dim)` for each text layer.

    Any number of text rows can read a memory: `b` rows read `n` images in order, `g = b / n` consecutive rows per
    image. Keys and values are not copied, because the rows of one image are folded into the query axis. This class is
    not a tensor, so `generate` does not expand it for beams. `mask` `(n, p)` is 0 for padding, which only questions of
    VQA have.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor | None = None

    @property
    def num_images(self) -> int:
        """Number of images."""
        return self.keys[0].shape[0]

    def select(self, image_index: Tensor) -> "ImageMemory":
        """Copies the images at `image_index`, of shape `(m,)`, into a memory of `m` images."""
        return ImageMemory(
            keys=tuple(key.index_select(0, image_index) for key in self.keys),
            values=tuple(value.index_select(0, image_index) for value in self.values),
            mask=None if self.mask is None else self.mask.index_select(0, image_index),
        )


def image_argument(images: ImageMemory | Tensor) -> dict[str, ImageMemory | Tensor]:
    """The argument of a text model for image states, which one call reads, or for a memory."""
    return {"image_memory": images} if isinstance(images, ImageMemory) else {"encoder_hidden_states": images}


@overload
def expand_text(num_images: int, ids: Tensor, mask: Tensor | None, /) -> tuple[Tensor, Tensor | None]: ...


@overload
def expand_text(
    num_images: int, ids: Tensor, mask: Tensor | None, labels: Tensor | None, /
) -> tuple[Tensor, Tensor | None, Tensor | None]: ...


def expand_text(num_images: int, *rows: Tensor | None) -> tuple[Tensor | None, ...]:
    """Expands tensors of one text, `(1, t)`, to `(num_images, t)`; returns other tensors unchanged."""
    return tuple(row if row is None or row.shape[0] != 1 else row.expand(num_images, *row.shape[1:]) for row in rows)


class AttentionModule(Protocol):
    """An attention layer, whose configuration names the backend."""

    training: bool

    @property
    def config(self) -> PreTrainedConfig:
        """Configuration of the model."""


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """Attention in plain tensor operations, which also returns the probabilities of shape `(b, h, t, p)`."""
    probabilities = attention_probabilities(query, key, attention_mask, scaling)
    dropped = nn.functional.dropout(probabilities, dropout, training=module.training)
    return (dropped @ value).transpose(1, 2), probabilities


def attention_probabilities(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Softmax of scaled dot products in fp32, `(b, h, t, p)` in the dtype of `query`."""
    scores = query @ key.transpose(-1, -2) * scaling  # (b, h, t, p)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)


def attend(
    module: AttentionModule,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    dropout: float,
    is_causal: bool,
    output_attentions: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attention with the backend of `module.config`, or eager attention to return probabilities: context of shape `(b, t, d)`."""
    implementation, scaling = module.config._attn_implementation, query.shape[-1] ** -0.5
    dropout = dropout if module.training else 0.0
    backend: Callable = eager_attention
    if not output_attentions:
        backend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
    context, probabilities = backend(
        module,
        query,
        key,
        value,
        mask,
        scaling=scaling,
        dropout=dropout,
        is_causal=is_causal,
    )
    return context.flatten(2), probabilities  # (b, t, h, head_dim) -> (b, t, d)


def split_heads(states: Tensor, num_heads: int) -> Tensor:
    """`(b, t, d)` -> `(b, h, t, head_dim)`, without a copy."""
    rows, length, _ = states.shape
    return states.view(rows, length, num_heads, -1).transpose(1, 2)


def attend_grouped(
    module: AttentionModule,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    num_heads: int,
    dropout: float,
) -> Tensor:
    """Cross-attention of `n * g` query rows to `n` images, `g` consecutive rows per image: `(n * g, t, d)`."""
    rows, length, width = query.shape
    folded = query.reshape(key.shape[0], -1, width)  # (n * g, t, d) -> (n, g * t, d)
    context, _ = attend(
        module,
        split_heads(folded, num_heads),
        key,
        value,
        mask,
        dropout=dropout,
        is_causal=False,
        output_attentions=False,
    )
    return context.reshape(rows, length, width)


def grouped_probabilities(query: Tensor, key: Tensor, mask: Tensor | None, *, num_heads: int) -> Tensor:
    """Probabilities of `attend_grouped`, of shape `(n * g, h, t, p)`."""
    rows, length, width = query.shape
    folded = split_heads(query.reshape(key.shape[0], -1, width), num_heads)  # (n, h, g * t, head_dim)
    probabilities = attention_probabilities(folded, key, mask, folded.shape[-1] ** -0.5)
    return probabilities.unflatten(2, (-1, length)).transpose(1, 2).reshape(rows, num_heads, length, key.shape[2])


def grouped_context(probabilities: Tensor, value: Tensor) -> Tensor:
    """Context of `attend_grouped` from its probabilities: `(n * g, h, t, p)` -> `(n * g, t, d)`."""
    rows, num_heads, length, num_keys = probabilities.shape
    grouped = probabilities.reshape(value.shape[0], -1, num_heads, length, num_keys).transpose(1, 2)
    context = grouped.flatten(2, 3) @ value  # (n, h, g * t, head_dim)
    return context.transpose(1, 2).reshape(rows, length, -1)


def self_attention_mask(
    attention_mask: Tensor | None,
    states: Tensor,
    cache: Cache | None,
    *,
    is_causal: bool,
    implementation: str,
) -> Tensor | None:
    """Mask of the text transformer's self-attention: boolean, true where a query may attend, or `None` without a mask.

    Values of the padding mask are never read on the host, so a training step does not wait for the device. A mask of
    four dimensions is returned unchanged, and flash kernels get the padding mask itself.
    """
    if attention_mask is not None and attention_mask.dim() == 4:
        return attention_mask
    if implementation.startswith("flash"):
        return attention_mask
    length = states.shape[1]
    num_keys = length if cache is None else cache.get_mask_sizes(length, 0)[0]
    visible = None
    if attention_mask is not None:
        visible = attention_mask.bool()[:, None, None]
        if cache is not None:
            visible = nn.functional.pad(visible, (0, num_keys - attention_mask.shape[1]))
    if not is_causal:
        return visible  # (b, 1, 1, keys)
    num_past = 0 if cache is None else cache.get_seq_length()
    query_position = torch.arange(length, device=states.device)[:, None] + num_past
    key_position = torch.arange(num_keys, device=states.device)
    causal = key_position <= query_position  # (t, keys)
    if visible is None:
        return causal[None, None]
    allowed = visible & causal
    # Left padding sees no key, and some kernels return NaN for it, so it attends to itself.
    return allowed | ((key_position == query_position) & ~allowed.any(dim=-1, keepdim=True))


def cross_attention_mask(padding_mask: Tensor | None, *, implementation: str) -> Tensor | None:
    """Mask of cross-attention: boolean of shape `(n, 1, 1, p)`, `(n, p)` for flash kernels, `None` without padding."""
    if padding_mask is None or implementation.startswith("flash"):
        return padding_mask
    return padding_mask.bool()[:, None, None]


__all__ = [
    "ImageMemory",
    "attend",
    "attend_grouped",
    "attention_probabilities",
    "cross_attention_mask",
    "eager_attention",
    "expand_text",
    "grouped_context",
    "grouped_probabilities",
    "image_argument",
    "self_attention_mask",
    "split_heads",
]
