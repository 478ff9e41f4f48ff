# SPDX-License-Identifier: BSD-3-Clause
"""Weights of a `BlipModel` that computes the features of a retrieval model.

The two classes pool differently. Features of the retrieval model are `W h + b` of position 0. A `BlipModel` applies its
last layer norm twice to images and `tanh` to texts, and its projections have no bias. Other weights give the same result:

- Images: with weight 1 and bias 1, the layer norm applied twice equals the layer norm applied once. Its old weight and bias
  move into the layers that read it. Its output has a mean of 1, which carries the bias of the projection.
- Texts: the pooler computes `tanh(s (W h + b))`, which is linear for a small scale `s`, and the projection divides by `s`.
"""

import re

import torch
from torch import Tensor

from .retrieval import BlipForImageTextRetrieval


# Relative error of `tanh(s x) / s` is `(s x)^2 / 3`: below fp32 rounding for features of size 1. A power of 2 is exact.
_POOLER_SCALE = 2.0**-12


@torch.no_grad()
def dual_encoder_state_dict(matcher: BlipForImageTextRetrieval) -> dict[str, Tensor]:
    """Returns the state dict of a `BlipModel` with the cosines of `matcher`, without `logit_scale`."""
    source = matcher.state_dict()
    state = {
        re.sub("^text_encoder", "text_model", name): value
        for name, value in source.items()
        if name.startswith(("vision_model.", "text_encoder."))
    }
    heads = {name: value.float() for name, value in source.items() if name.startswith(("vision_proj", "text_proj"))}
    norm_weight = state["vision_model.post_layernorm.weight"].float()
    norm_bias = state["vision_model.post_layernorm.bias"].float()
    new = {
        "vision_model.post_layernorm.weight": torch.ones_like(norm_weight),
        "vision_model.post_layernorm.bias": torch.ones_like(norm_bias),
        "visual_projection.weight": _image_projection(
            heads["vision_proj.weight"], heads["vision_proj.bias"], norm_weight, norm_bias
        ),
        **_text_head(heads["text_proj.weight"], heads["text_proj.bias"]),
    }
    for name in state:
        if re.search(r"\.crossattention\.self\.(key|value)\.weight$", name):
            bias = re.sub("weight$", "bias", name)
            weight = state[name].float()
            # Image states are now `x + 1` in place of `norm_weight * x + norm_bias`.
            new[name] = weight * norm_weight
            new[bias] = state[bias].float() + weight @ (norm_bias - norm_weight)
    return state | new


def _image_projection(weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> Tensor:
    """Projection `(d, width)` without bias, for layer-normed states `x + 1`, where `x` has a mean of 0."""
    scaled = weight * norm_weight
    constant = weight @ norm_bias + bias
    # Rows that sum to 0 ignore the 1, and a constant row ignores `x`.
    return scaled - scaled.mean(dim=1, keepdim=True) + constant[:, None] / weight.shape[1]


def _text_head(weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Pooler of shape `(width, width)` and projection `(d, width)` of texts; `weight` is `(d, width)`."""
    num_features, width = weight.shape
    if num_features > width:
        raise ValueError(
            f"image_text_hidden_size is {num_features}, more than the text's hidden_size of {width}, through which the"
            " features of a BlipModel pass. Use BlipForImageTextRetrieval itself."
        )
    padding = (0, width - num_features)
    return {
        "text_model.pooler.dense.weight": torch.nn.functional.pad(weight * _POOLER_SCALE, (0, 0, *padding)),
        "text_model.pooler.dense.bias": torch.nn.functional.pad(bias * _POOLER_SCALE, padding),
        "text_projection.weight": torch.eye(num_features, width, dtype=weight.dtype, device=weight.device)
        / _POOLER_SCALE,
    }


__all__ = ["dual_encoder_state_dict"]
