# SPDX-License-Identifier: BSD-3-Clause
"""Kinds of original checkpoints: recognised by their parts, with class and configuration."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..configuration_blip import BlipConfig, BlipContrastiveConfig
from ..modeling.base import BlipPreTrainedModel
from ..modeling.caption import BlipForConditionalGeneration
from ..modeling.nlvr2 import BlipForVisualReasoning
from ..modeling.pretraining import BlipForPreTraining
from ..modeling.retrieval import BlipForImageTextRetrieval
from ..modeling.retrieval_training import BlipForRetrievalTraining
from ..modeling.vqa import BlipForQuestionAnswering
from .original_file import ConfigFields


# Width of an attention head, and widths of the transformers, in all released models. Weights do not determine the former.
HEAD_WIDTH = 64
RELEASED_WIDTHS = (768, 1024)
# salesforce/BLIP gives ViT-L, from this width on, this stochastic depth (models/blip.py).
LARGE_VISION_WIDTH = 1024
DROP_PATH_RATE = 0.1
DROPOUT = 0.1
LABEL_SMOOTHING = 0.1
VISION_LAYER_NORM_EPS = 1e-6
TEXT_LAYER_NORM_EPS = 1e-12
# Training state of pre-training and retrieval checkpoints.
_TRAINING_PARTS = {"momentum_towers", "queue", "temp"}


@dataclass(frozen=True)
class Kind:
    """A kind of original checkpoint."""

    task: str
    parts: frozenset[str]
    model_class: type[BlipPreTrainedModel]
    training_class: type[BlipPreTrainedModel] | None = None
    drop_path_rate: float = 0.0


_RETRIEVER_PARTS = frozenset({"vision_model", "text_encoder", "vision_proj", "text_proj", "itm_head"})
KINDS = (
    Kind("pre-training", _RETRIEVER_PARTS | {"text_decoder"}, BlipForPreTraining, BlipForPreTraining),
    Kind("captioning", frozenset({"vision_model", "text_decoder"}), BlipForConditionalGeneration),
    Kind("retrieval", _RETRIEVER_PARTS, BlipForImageTextRetrieval, BlipForRetrievalTraining),
    Kind(
        "question answering",
        frozenset({"vision_model", "text_encoder", "text_decoder"}),
        BlipForQuestionAnswering,
        drop_path_rate=DROP_PATH_RATE,
    ),
    Kind(
        "visual reasoning",
        frozenset({"vision_model", "text_encoder", "cls_head"}),
        BlipForVisualReasoning,
        drop_path_rate=DROP_PATH_RATE,
    ),
)


def find_kind(names: Iterable[str]) -> Kind:
    """Finds the kind of a checkpoint from its tensor names."""
    parts = {name.partition(".")[0] for name in names} - _TRAINING_PARTS
    for kind in KINDS:
        if kind.parts == parts:
            return kind
    known = "; ".join(f"{kind.task}: {', '.join(sorted(kind.parts))}" for kind in KINDS)
    raise ValueError(
        f"A checkpoint with {', '.join(sorted(parts)) or 'no tensors'} fits no known kind ({known}). Pass the original"
        " file."
    )


def infer_image_size(state: Mapping[str, Tensor]) -> int:
    """Image size of a checkpoint in pixels."""
    num_patches = _shape(state, "vision_model.embeddings.position_embedding")[1] - 1  # without [CLS]
    side = math.isqrt(num_patches)
    if side**2 != num_patches:
        raise ValueError(f"There are position embeddings of {num_patches} patches, expected a square number.")
    return side * _shape(state, "vision_model.embeddings.patch_embedding.weight")[-1]


def infer_config(
    state: Mapping[str, Tensor],
    kind: Kind,
    config_class: type[BlipConfig],
    *,
    token_ids: Mapping[str, int],
    head_width: int | None = None,
    config_fields: ConfigFields | None = None,
) -> BlipConfig:
    """Infers the configuration of a checkpoint: sizes from shapes, other fields from the file or the original code."""
    vision_config = _infer_vision_config(state)
    is_large = vision_config["hidden_size"] >= LARGE_VISION_WIDTH
    vision_config["drop_path_rate"] = DROP_PATH_RATE if is_large else kind.drop_path_rate
    text_config = _infer_text_config(state)
    for part, values in (("vision", vision_config), ("text", text_config)):
        values |= (config_fields or {}).get(f"{part}_config", {})
        if head_width is not None or "num_attention_heads" not in values:
            values["num_attention_heads"] = _num_heads(part, values["hidden_size"], head_width)
    if text_config["vocab_size"] != token_ids["vocab_size"]:
        raise ValueError(
            f"The checkpoint has {text_config['vocab_size']} words, the tokenizer with [DEC] and [ENC] has"
            f" {token_ids['vocab_size']}. Pass the tokenizer that it was trained with (--tokenizer): bert-base-uncased"
            " for all released files."
        )
    fields: dict[str, Any] = {}
    if "vision_proj.weight" in state:
        fields["image_text_hidden_size"] = state["vision_proj.weight"].shape[0]
    if kind.task == "visual reasoning":
        fields["merge_from_layer"] = _first_merging_layer(state, text_config["num_hidden_layers"])
    if issubclass(config_class, BlipContrastiveConfig) and "queue.image_features" in state:
        fields["queue_size"] = len(state["queue.image_features"])
    if "temp" in state:  # hard negatives are drawn at the temperature of ITC
        fields["itm_temperature"] = round(state["temp"].item(), 6)
    return config_class(text_config={**text_config, **token_ids}, vision_config=vision_config, **fields)


def _infer_vision_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    width = _shape(state, "vision_model.embeddings.class_embedding")[-1]
    return {
        "hidden_size": width,
        "intermediate_size": _shape(state, "vision_model.encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": _count_layers(state, "vision_model.encoder.layers."),
        "image_size": infer_image_size(state),
        "patch_size": _shape(state, "vision_model.embeddings.patch_embedding.weight")[-1],
        "layer_norm_eps": VISION_LAYER_NORM_EPS,
        "attention_dropout": 0.0,
    }


def _infer_text_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    # Both text transformers of a checkpoint have the same sizes.
    root = "text_decoder.bert." if any(name.startswith("text_decoder.") for name in state) else "text_encoder."
    vocab_size, width = _shape(state, f"{root}embeddings.word_embeddings.weight")
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": _shape(state, f"{root}encoder.layer.0.intermediate.dense.weight")[0],
        "num_hidden_layers": _count_layers(state, f"{root}encoder.layer."),
        "max_position_embeddings": _shape(state, f"{root}embeddings.position_embeddings.weight")[0],
        "layer_norm_eps": TEXT_LAYER_NORM_EPS,
        "hidden_dropout_prob": DROPOUT,
        "attention_probs_dropout_prob": DROPOUT,
        "label_smoothing": LABEL_SMOOTHING,
    }


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(f"The checkpoint lacks {name} (our name): it is not complete.")
    return tuple(state[name].shape)


def _count_layers(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)})


def _first_merging_layer(state: Mapping[str, Tensor], num_layers: int) -> int:
    merging = (re.search(r"\.layer\.(\d+)\.crossattention\.output\.merge_layer\.", name) for name in state)
    return min((int(match[1]) for match in merging if match), default=num_layers)


def _num_heads(part: str, width: int, head_width: int | None) -> int:
    if head_width is None:
        if width not in RELEASED_WIDTHS:
            raise ValueError(
                f"The number of attention heads of the {part} transformer is unknown: it is not in the file, and weights of"
                f" width {width} do not determine it. Pass the width of a head that the checkpoint was trained with"
                f" (--head_width); released models have {HEAD_WIDTH}."
            )
        head_width = HEAD_WIDTH
    if width % head_width:
        raise ValueError(
            f"A width of {width} is not a multiple of the head width {head_width}. Pass the head width that the checkpoint"
            f" was trained with (--head_width); released models have {HEAD_WIDTH}."
        )
    return width // head_width


__all__ = ["HEAD_WIDTH", "KINDS", "Kind", "find_kind", "infer_config", "infer_image_size"]
