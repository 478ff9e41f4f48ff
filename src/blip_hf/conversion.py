# SPDX-License-Identifier: BSD-3-Clause
"""Names of the original BLIP checkpoints, turned into ours."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .momentum import UNKNOWN_IMAGE


# In order; each pattern is replaced wherever it occurs in a name.
_RENAMES = {
    r"^visual_encoder_m\.": "momentum_towers.visual_encoder.",
    r"^text_encoder_m\.": "momentum_towers.text_encoder.",
    r"^vision_proj_m\.": "momentum_towers.vision_proj.",
    r"^text_proj_m\.": "momentum_towers.text_proj.",
    r"\bvisual_encoder\.cls_token$": "vision_model.embeddings.class_embedding",
    r"\bvisual_encoder\.pos_embed$": "vision_model.embeddings.position_embedding",
    r"\bvisual_encoder\.patch_embed\.proj\.": "vision_model.embeddings.patch_embedding.",
    r"\bvisual_encoder\.norm\.": "vision_model.post_layernorm.",
    r"\bvisual_encoder\.blocks\.(\d+)\.attn\.qkv\.": r"vision_model.encoder.layers.\1.self_attn.qkv.",
    r"\bvisual_encoder\.blocks\.(\d+)\.attn\.proj\.": r"vision_model.encoder.layers.\1.self_attn.projection.",
    r"\bvisual_encoder\.blocks\.(\d+)\.norm([12])\.": r"vision_model.encoder.layers.\1.layer_norm\2.",
    r"\bvisual_encoder\.blocks\.(\d+)\.mlp\.": r"vision_model.encoder.layers.\1.mlp.",
    r"^image_queue$": "queue.image_features",
    r"^text_queue$": "queue.text_features",
    r"^queue_ptr$": "queue.num_enqueued",
}
# Known and of no use here: a constant buffer, and cross-attention that the momentum text tower never runs.
_DROPPED = (r"\.position_ids$", r"^text_encoder_m\..*\.crossattention\.")
_KNOWN = (
    r"^(momentum_towers\.)?(vision_model|text_encoder|vision_proj|text_proj)\.",
    r"^(text_decoder|itm_head|queue)\.",
    r"^temp$",
)


def convert_original_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of an original captioning, matching or pre-training checkpoint.

    Args:
        state_dict (mapping of `str` to `torch.Tensor`):
            Contents of the `model` entry of a released `.pth`.

    Returns:
        `dict`: Tensors under the names of `BlipForConditionalGeneration`, `BlipForImageTextRetrieval` or
        `BlipForPreTraining`, whichever the checkpoint was made for; queues are transposed to one row a pair.

    Raises:
        ValueError: If a name is not known, with all such names.

    Example:
        >>> import torch
        >>> list(convert_original_state_dict({"visual_encoder.norm.bias": torch.zeros(1)}))
        ['vision_model.post_layernorm.bias']
    """
    converted, unknown = {}, []
    for name, tensor in state_dict.items():
        if any(re.search(pattern, name) for pattern in _DROPPED):
            continue
        new_name = name
        for pattern, replacement in _RENAMES.items():
            new_name = re.sub(pattern, replacement, new_name)
        if not any(re.search(pattern, new_name) for pattern in _KNOWN):
            unknown.append(name)
        converted[new_name] = _reshaped(new_name, tensor)
    if unknown:
        raise ValueError(
            f"{len(unknown)} tensors are not of a BLIP captioning, matching or pre-training checkpoint:"
            f" {', '.join(sorted(unknown)[:10])}. Pass the 'model' entry of the original file."
        )
    if "queue.image_features" in converted:
        num_pairs = len(converted["queue.image_features"])
        converted["queue.image_ids"] = torch.full((num_pairs,), UNKNOWN_IMAGE)  # pre-training kept no ids
    return converted


def _reshaped(name: str, tensor: Tensor) -> Tensor:
    if name in ("queue.image_features", "queue.text_features"):
        return tensor.T.contiguous()  # (d, q) -> (q, d)
    if name == "queue.num_enqueued":
        return tensor.reshape(())  # (1,) -> ()
    return tensor


__all__ = ["convert_original_state_dict"]
