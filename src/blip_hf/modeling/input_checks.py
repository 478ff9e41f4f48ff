# SPDX-License-Identifier: BSD-3-Clause
"""Checks of text inputs that several models share."""

import torch
from torch import Tensor, nn

from ..configuration_blip import BlipTextConfig


def refuse_long_text(length: int, config: BlipTextConfig) -> None:
    """Raises `ValueError` for a text that is longer than the position embeddings."""
    if torch.jit.is_tracing():  # a trace has no branches
        return
    limit = config.max_position_embeddings
    if length > limit:
        raise ValueError(f"text has {length} tokens, the model takes at most {limit}. Truncate it.")


def refuse_token_types(token_type_ids: Tensor | None, model: nn.Module) -> None:
    """Raises `ValueError` for token types other than 0, because BLIP has no embeddings for them.

    Reading the values waits for an accelerator, so a training step on one does not check them. Compiled, exported and
    traced graphs do not check them either, because they have no branches on values.
    """
    if token_type_ids is None or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    if model.training and token_type_ids.device.type != "cpu":
        return
    if token_type_ids.any():
        raise ValueError(
            "token_type_ids has values other than 0, but BLIP has no token types. Tokenize one text per row instead of"
            " pairs of texts, or leave out token_type_ids."
        )


__all__ = ["refuse_long_text", "refuse_token_types"]
