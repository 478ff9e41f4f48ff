# SPDX-License-Identifier: BSD-3-Clause
"""Maps tensor names of original BLIP checkpoints to ours and back."""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..modeling.momentum import UNKNOWN_IMAGE


# Two names of the same number. LAVIS uses the first also for retrieval.
_PRETRAINING_POINTER, _RETRIEVAL_POINTER = "queue_ptr", "ptr_queue"

# Original name, our name. `{i}` is the index of a layer; a name that ends with a dot is a prefix. Names of the text
# transformer and of the heads are equal.
_PAIRS = (
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    ("visual_encoder.blocks.{i}.attn.qkv.", "vision_model.encoder.layers.{i}.self_attn.qkv."),
    ("visual_encoder.blocks.{i}.attn.proj.", "vision_model.encoder.layers.{i}.self_attn.projection."),
    ("visual_encoder.blocks.{i}.norm1.", "vision_model.encoder.layers.{i}.layer_norm1."),
    ("visual_encoder.blocks.{i}.norm2.", "vision_model.encoder.layers.{i}.layer_norm2."),
    ("visual_encoder.blocks.{i}.mlp.", "vision_model.encoder.layers.{i}.mlp."),
    ("visual_encoder.norm.", "vision_model.post_layernorm."),
    ("image_queue", "queue.image_features"),
    ("text_queue", "queue.text_features"),
    ("idx_queue", "queue.image_ids"),
    (_PRETRAINING_POINTER, "queue.num_enqueued"),
    (_RETRIEVAL_POINTER, "queue.num_enqueued"),
)
_SAME_NAMES = ("text_encoder.", "text_decoder.", "vision_proj.", "text_proj.", "itm_head.", "cls_head.", "temp")
# Momentum encoder: `text_proj_m.bias` is `momentum_towers.text_proj.bias`.
_MOMENTUM_PARTS = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
MOMENTUM_PREFIX = "momentum_towers."
QUEUE_PREFIX = "queue."

# Parts that wrappers add to names: data parallelism, `torch.compile`, FSDP, activation checkpointing and Lightning.
_WRAPPER_PARTS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "model"})

# Known tensors that are dropped, with reasons.
_DROPPED = {
    r"\.position_ids$": "a constant that the model creates",
    r"^text_encoder_m\..*\.crossattention\.": "unused: the momentum text encoder reads no image",
}


def unwrap_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Removes the parts that wrappers of a model add to the names of its tensors.

    Example:
        >>> list(unwrap_names({"module._orig_mod.temp": None}))
        ['temp']
    """
    unwrapped: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        new_name = ".".join(part for part in name.split(".") if part not in _WRAPPER_PARTS)
        if new_name in unwrapped:
            raise ValueError(f"The checkpoint holds {new_name} twice, once as {name}. Save the tensors of one model.")
        unwrapped[new_name] = tensor
    return unwrapped


def map_original_names(names: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Maps original tensor names to ours; also returns the dropped names with reasons.

    Example:
        >>> map_original_names(["text_proj_m.bias", "text_encoder.embeddings.position_ids"])
        ({'text_proj_m.bias': 'momentum_towers.text_proj.bias'}, \
{'text_encoder.embeddings.position_ids': 'a constant that the model creates'})
    """
    mapped, dropped, unknown = {}, {}, []
    for name in names:
        reasons = [reason for pattern, reason in _DROPPED.items() if re.search(pattern, name)]
        new_name = _our_name(name)
        if reasons:
            dropped[name] = reasons[0]
        elif new_name is None:
            unknown.append(name)
        else:
            mapped[name] = new_name
    if any(name.startswith("vision_model.") for name in unknown):
        raise ValueError(
            "These tensors have the names of transformers and need no conversion. Pass their folder to"
            " `from_pretrained`."
        )
    if unknown:
        raise ValueError(
            f"{len(unknown)} tensors are unknown to BLIP: {', '.join(sorted(unknown)[:10])}. Pass the 'model'"
            " entry of the original file."
        )
    return mapped, dropped


def convert_original_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of an original checkpoint of any task.

    Args:
        state_dict (mapping of `str` to `torch.Tensor`):
            Contents of the `model` entry of an original `.pth`. Prefixes of wrappers, such as `module.`, are removed.

    Returns:
        `dict`: Tensors with our names (docs/checkpoints.md). Queues are transposed to one row per pair.

    Raises:
        ValueError: If a name is unknown.

    Example:
        >>> import torch
        >>> list(convert_original_state_dict({"visual_encoder.norm.bias": torch.zeros(1)}))
        ['vision_model.post_layernorm.bias']
    """
    state_dict = unwrap_names(state_dict)
    mapped, _ = map_original_names(state_dict)
    converted = {new_name: _reshaped(new_name, state_dict[name]) for name, new_name in mapped.items()}
    if "queue.image_features" in converted and "queue.image_ids" not in converted:
        num_pairs = len(converted["queue.image_features"])
        converted["queue.image_ids"] = torch.full((num_pairs,), UNKNOWN_IMAGE)  # not stored in pre-training
    return converted


def restore_original_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames tensors to their original names, so that the original code loads them with `strict=True`.

    Adds tensors that the original code expects: `position_ids`, and the unused cross-attention of the momentum text encoder
    (a copy of the online one). Drops the image ids of a pre-training queue.

    Args:
        state_dict (mapping of `str` to `torch.Tensor`):
            Tensors with our names; shared tensors under each of their names.

    Returns:
        `dict`: Contents of the `model` entry of an original `.pth`.

    Raises:
        ValueError: If a name is unknown.

    Example:
        >>> import torch
        >>> list(restore_original_state_dict({"vision_model.post_layernorm.bias": torch.zeros(1)}))
        ['visual_encoder.norm.bias']
    """
    has_decoder = any(name.startswith("text_decoder.") for name in state_dict)
    pointer = _PRETRAINING_POINTER if has_decoder else _RETRIEVAL_POINTER
    state = dict(state_dict)
    if has_decoder:
        state.pop("queue.image_ids", None)
    if "queue.num_enqueued" in state:
        state["queue.num_enqueued"] = state["queue.num_enqueued"] % max(len(state["queue.image_features"]), 1)
    restored, unknown = {}, []
    for name, tensor in state.items():
        original = _original_name(name, pointer)
        if original is None:
            unknown.append(name)
            continue
        restored[original] = _original_shape(name, tensor)
    if unknown:
        raise ValueError(f"The original format has no names for {', '.join(sorted(unknown)[:10])}.")
    return restored | _additions(restored)


def _additions(restored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    added = {}
    for name, tensor in restored.items():
        root, found, _ = name.partition("position_embeddings.weight")
        if found:
            added[f"{root}position_ids"] = torch.arange(len(tensor), device=tensor.device)[None]  # (1, positions)
        part, _, rest = name.partition(".")
        if part == "text_encoder" and ".crossattention." in rest and "text_proj_m.weight" in restored:
            added[f"text_encoder_m.{rest}"] = tensor
    return added


def _our_name(name: str) -> str | None:
    part, _, rest = name.partition(".")
    if part.endswith("_m") and part[:-2] in _MOMENTUM_PARTS:
        own = _our_name(f"{part[:-2]}.{rest}")
        return None if own is None else MOMENTUM_PREFIX + own
    return _renamed(name, _TO_OURS)


def _original_name(name: str, pointer: str) -> str | None:
    if name == "queue.num_enqueued":
        return pointer
    if not name.startswith(MOMENTUM_PREFIX):
        return _renamed(name, _TO_ORIGINAL)
    online = _renamed(name.removeprefix(MOMENTUM_PREFIX), _TO_ORIGINAL)
    return None if online is None else re.sub(r"^\w+", r"\g<0>_m", online)


def _renamed(name: str, rules: tuple[tuple[re.Pattern, str], ...]) -> str | None:
    for pattern, replacement in rules:
        if pattern.match(name):
            return pattern.sub(replacement, name)
    return None


def _rule(source: str, target: str) -> tuple[re.Pattern, str]:
    pattern = "^" + re.escape(source).replace(r"\{i\}", r"(\d+)") + ("" if source.endswith(".") else "$")
    return re.compile(pattern), target.replace("{i}", r"\1")


_ALL_PAIRS = (*_PAIRS, *zip(_SAME_NAMES, _SAME_NAMES, strict=True))
_TO_OURS = tuple(_rule(original, ours) for original, ours in _ALL_PAIRS)
_TO_ORIGINAL = tuple(_rule(ours, original) for original, ours in _ALL_PAIRS)


def _reshaped(name: str, tensor: Tensor) -> Tensor:
    if name in ("queue.image_features", "queue.text_features"):
        return tensor.T.contiguous()  # (d, q) -> (q, d)
    if name == "queue.image_ids":
        return tensor.reshape(-1)  # (1, q) -> (q,)
    if name == "queue.num_enqueued":
        return tensor.reshape(())  # (1,) -> ()
    return tensor


def _original_shape(name: str, tensor: Tensor) -> Tensor:
    if name in ("queue.image_features", "queue.text_features"):
        return tensor.T.contiguous()  # (q, d) -> (d, q)
    if name == "queue.image_ids":
        return tensor.reshape(1, -1)  # (q,) -> (1, q)
    if name == "queue.num_enqueued":
        return tensor.reshape(1)  # () -> (1,)
    return tensor


__all__ = [
    "MOMENTUM_PREFIX",
    "QUEUE_PREFIX",
    "convert_original_state_dict",
    "map_original_names",
    "restore_original_state_dict",
    "unwrap_names",
]
