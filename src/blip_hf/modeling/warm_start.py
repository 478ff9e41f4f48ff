# SPDX-License-Identifier: BSD-3-Clause
"""Reads ViT and BERT checkpoints of transformers, to start pre-training (paper, section 4.1)."""

import os
import re
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from ..configuration_blip import BlipTextConfig, BlipVisionConfig
from .vision import BlipVisionModel


_VISION_RENAMES = {
    r"^embeddings\.cls_token$": "embeddings.class_embedding",
    r"^embeddings\.position_embeddings$": "embeddings.position_embedding",
    r"^embeddings\.patch_embeddings\.projection\.": "embeddings.patch_embedding.",
    r"^layers\.(\d+)\.attention\.o_proj\.": r"encoder.layers.\1.self_attn.projection.",
    r"^layers\.(\d+)\.layernorm_before\.": r"encoder.layers.\1.layer_norm1.",
    r"^layers\.(\d+)\.layernorm_after\.": r"encoder.layers.\1.layer_norm2.",
    r"^layers\.(\d+)\.mlp\.": r"encoder.layers.\1.mlp.",
    r"^layernorm\.": "post_layernorm.",
}
_VISION_DROPPED = r"^pooler\.|^embeddings\.(distillation_token|mask_token)$|\.[qkv]_proj\."
_SHARED_VISION_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
_SHARED_TEXT_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
    "pad_token_id",
)
# [DEC] and [ENC], which BLIP adds to BERT's vocabulary.
_NUM_ADDED_TOKENS = 2


def read_vision_encoder(path: str | os.PathLike, **fields: Any) -> tuple[BlipVisionConfig, dict[str, Tensor]]:
    """Reads a ViT, DeiT or `BlipVisionModel` checkpoint: configuration, and tensors with our names."""
    config = AutoConfig.from_pretrained(path)
    if config.model_type == "blip_vision_model":
        model = BlipVisionModel.from_pretrained(path, dtype=torch.float32, **fields)
        return model.config, model.state_dict()
    _require_type(path, config.model_type, ("vit", "deit", "blip_vision_model"))
    source = AutoModel.from_pretrained(path, dtype=torch.float32, add_pooling_layer=False).state_dict()
    state = _rename(source, _VISION_RENAMES, dropped=_VISION_DROPPED)
    for layer in range(config.num_hidden_layers):
        for kind in ("weight", "bias"):
            parts = [source[f"layers.{layer}.attention.{name}_proj.{kind}"] for name in "qkv"]
            state[f"encoder.layers.{layer}.self_attn.qkv.{kind}"] = torch.cat(parts)
    if "embeddings.distillation_token" in source:
        positions = state["embeddings.position_embedding"]
        state["embeddings.position_embedding"] = torch.cat([positions[:, :1], positions[:, 2:]], dim=1)
    shared = {name: getattr(config, name) for name in _SHARED_VISION_FIELDS}
    return BlipVisionConfig(**(shared | fields)), state


def read_text_encoder(path: str | os.PathLike, **fields: Any) -> tuple[BlipTextConfig, dict[str, Tensor]]:
    """Reads a BERT checkpoint: configuration, and tensors with our names, without cross-attention.

    Adds BERT's vector of token type 0 to the position embeddings, because BLIP has no token types. The unimodal text
    encoder then reproduces BERT's outputs. salesforce/BLIP drops the vector.
    """
    config = AutoConfig.from_pretrained(path)
    _require_type(path, config.model_type, ("bert",))
    state = AutoModel.from_pretrained(path, dtype=torch.float32).state_dict()
    state = {name: value for name, value in state.items() if not name.startswith("pooler.")}
    token_types = state.pop("embeddings.token_type_embeddings.weight")
    positions = state["embeddings.position_embeddings.weight"]
    state["embeddings.position_embeddings.weight"] = positions + token_types[0]
    shared: dict[str, Any] = {name: getattr(config, name) for name in _SHARED_TEXT_FIELDS}
    shared |= {"vocab_size": config.vocab_size + _NUM_ADDED_TOKENS, "bos_token_id": config.vocab_size}
    return BlipTextConfig(**(shared | fields)), state


@torch.no_grad()
def copy_into(module: torch.nn.Module, state: dict[str, Tensor]) -> None:
    """Copies tensors by name. Extra rows of the target, such as new words, are kept."""
    parameters = dict(module.named_parameters())
    for name, value in state.items():
        parameters[name][: len(value)].copy_(value)


def _require_type(path: str | os.PathLike, model_type: str, accepted: tuple[str, ...]) -> None:
    if model_type not in accepted:
        raise ValueError(f"{path} contains a model of type {model_type!r}, expected one of {', '.join(accepted)}.")


def _rename(state: dict[str, Tensor], renames: dict[str, str], dropped: str) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        if re.search(dropped, name):
            continue
        for pattern, replacement in renames.items():
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


__all__ = ["copy_into", "read_text_encoder", "read_vision_encoder"]
