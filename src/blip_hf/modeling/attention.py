# SPDX-License-Identifier: BSD-3-Clause
"""Attention of the image encoder and the text transformer, the image memory, and masks.

Letters: `b` rows, `t` text tokens, `p` image tokens, `h` heads, `d` width, `g` text rows of each image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
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


def expand_text(num_images: int, *rows: Tensor | None) -> tuple[Tensor | None, ...]:
    """Expands tensors of one text, `(1, t)`, to `(num_images, t)`; returns other tensors unchanged."""
    return tuple(row if row is None or len(row) != 1 else row.expand(num_images, *row.shape[1:]) for row in rows)


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
    scores = query @ key.transpose(-1, -2) * scaling  # (b, h, t, p)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    probabilities = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    dropped = nn.functional.dropout(probabilities, dropout, training=module.training)
    return (dropped @ value).transpose(1, 2), probabilities


def attend(
    module: nn.Module,
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
    return states.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def attend_grouped(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    num_heads: int,
    dropout: float,
    output_attentions: bool,
) -> tuple[Tensor, Tensor | None]:
    """Cross-attention of `n * g` query rows to `n` images, `g` consecutive rows per image: `(n * g, t, d)`, and probabilities."""
    rows, length, _ = query.shape
    folded = query.reshape(key.shape[0], -1, query.shape[-1])  # (n * g, t, d) -> (n, g * t, d)
    context, probabilities = attend(
        module,
        split_heads(folded, num_heads),
        key,
        value,
        mask,
        dropout=dropout,
        is_causal=False,
        output_attentions=output_attentions,
    )
    if probabilities is not None:  # (n, h, g * t, p) -> (n * g, h, t, p)
        probabilities = probabilities.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1)
    return context.reshape(rows, length, -1), probabilities


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
        visible = nn.functional.pad(attention_mask.bool(), (0, num_keys - attention_mask.shape[1]))[:, None, None]
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


def memory_mask(memory: ImageMemory, *, implementation: str) -> Tensor | None:
    """Mask of cross-attention: boolean of shape `(n, 1, 1, p)`, `(n, p)` for flash kernels, `None` without padding."""
    if memory.mask is None or implementation.startswith("flash"):
        return memory.mask
    return memory.mask.bool()[:, None, None]


__all__ = [
    "ImageMemory",
    "attend",
    "attend_grouped",
    "eager_attention",
    "expand_text",
    "memory_mask",
    "self_attention_mask",
    "split_heads",
]
