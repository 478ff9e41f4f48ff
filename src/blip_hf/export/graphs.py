# SPDX-License-Identifier: BSD-3-Clause
"""The parts of a model as graphs: modules that take and return plain tensors, for tracing.

Letters: `n` images, `b` texts (`b / n` consecutive ones for each image), `t` tokens, `q` earlier tokens, `p` states of an
image or a question, `h` heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..modeling.attention import ImageMemory
from ..modeling.base import BlipPreTrainedModel
from ..modeling.caption import BlipForConditionalGeneration
from ..modeling.exported.graph_names import (
    GROUNDED_ENCODER,
    IMAGE_ENCODER,
    IMAGE_MEMORY,
    QUESTION_MEMORY,
    TEXT_DECODER,
    TEXT_ENCODER,
)
from ..modeling.language_modeling import BlipTextLMHeadModel
from ..modeling.retrieval import BlipForImageTextRetrieval
from ..modeling.text import BlipTextModel
from ..modeling.vision import BlipVisionModel
from ..modeling.vqa import BlipForQuestionAnswering


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A module with example inputs, in order, and the names of its axes that may have any size."""

    module: nn.Module
    inputs: dict[str, Tensor]
    axes: dict[str, dict[int, str]] = field(default_factory=dict)
    outputs: Sequence[str] = ()


def graphs_of(model: BlipPreTrainedModel) -> dict[str, Graph]:
    """The graphs that a captioner, a matcher or a VQA model consists of, by name.

    Raises:
        TypeError: If the model is of another class.
    """
    if isinstance(model, BlipForConditionalGeneration):
        return {
            **_image_graphs(model.vision_model, model.text_decoder.bert),
            TEXT_DECODER: _decoder_graph(model.text_decoder, _num_states(model.vision_model)),
        }
    if isinstance(model, BlipForImageTextRetrieval):
        return {
            **_image_graphs(model.vision_model, model.text_encoder),
            TEXT_ENCODER: _text_graph(model.text_encoder),
            GROUNDED_ENCODER: _grounded_graph(model.text_encoder, _num_states(model.vision_model), cls_only=True),
        }
    if isinstance(model, BlipForQuestionAnswering):
        return {
            **_image_graphs(model.vision_model, model.text_encoder),
            GROUNDED_ENCODER: _grounded_graph(model.text_encoder, _num_states(model.vision_model), cls_only=False),
            QUESTION_MEMORY: _memory_graph(model.text_decoder.bert, 6),
            TEXT_DECODER: _decoder_graph(model.text_decoder, 6, has_mask=True),
        }
    raise TypeError(
        f"{type(model).__name__} is not exported. Pass a BlipForConditionalGeneration, BlipForImageTextRetrieval or"
        " BlipForQuestionAnswering."
    )


# Modules


class _ImageEncoder(nn.Module):
    """`(n, 3, height, width)` -> `(n, p, d)`."""

    def __init__(self, vision_model: BlipVisionModel) -> None:
        super().__init__()
        self.vision_model = vision_model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.vision_model(pixel_values).last_hidden_state


class _Memory(nn.Module):
    """States `(n, p, d)` -> keys, then values of each layer, `(n, h, p, head_dim)`."""

    def __init__(self, text_model: BlipTextModel) -> None:
        super().__init__()
        self.text_model = text_model

    def forward(self, states: Tensor) -> tuple[Tensor, ...]:
        memory = self.text_model.build_image_memory(states)
        return (*memory.keys, *memory.values)


class _TextEncoder(nn.Module):
    """`(b, t)` -> states of [CLS], `(b, 1, d)`."""

    def __init__(self, text_model: BlipTextModel) -> None:
        super().__init__()
        self.text_model = text_model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.text_model(input_ids, attention_mask, cls_only=True).last_hidden_state


class _GroundedEncoder(nn.Module):
    """`(b, t)` and a memory -> `(b, t, d)`, or `(b, 1, d)` with `cls_only`."""

    def __init__(self, text_model: BlipTextModel, cls_only: bool) -> None:
        super().__init__()
        self.text_model, self.cls_only = text_model, cls_only

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *memory: Tensor) -> Tensor:
        images = ImageMemory(*_halves(memory))
        return self.text_model(
            input_ids, attention_mask, image_memory=images, cls_only=self.cls_only
        ).last_hidden_state


class _TextDecoder(nn.Module):
    """`(b, t)`, a memory and the keys and values of earlier tokens -> logits `(b, t, v)`, and new keys and values."""

    def __init__(self, text_decoder: BlipTextLMHeadModel, has_mask: bool) -> None:
        super().__init__()
        self.text_decoder, self.has_mask = text_decoder, has_mask
        self.num_layers = len(text_decoder.bert.encoder.layer)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor, *states: Tensor
    ) -> tuple[Tensor, ...]:
        mask, states = (states[0], states[1:]) if self.has_mask else (None, states)
        memory, past = states[: 2 * self.num_layers], states[2 * self.num_layers :]
        cache = _GraphCache(*_halves(past))
        logits = self.text_decoder(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            image_memory=ImageMemory(*_halves(memory), mask),
            past_key_values=cache,
            use_cache=True,
        ).logits
        return (logits, *cache.new_keys, *cache.new_values)


class _GraphCache:
    """The part of a `Cache` that the text layers call, without in-place changes."""

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        self.keys, self.values = keys, values
        self.new_keys: list[Tensor] = []
        self.new_values: list[Tensor] = []

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        self.new_keys.append(key)
        self.new_values.append(value)
        return torch.cat([self.keys[layer_idx], key], dim=2), torch.cat([self.values[layer_idx], value], dim=2)


def _halves(tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    half = len(tensors) // 2
    return tuple(tensors[:half]), tuple(tensors[half:])


# Example inputs. Sizes are large enough that a size burnt into a graph shows at another one.


def _image_graphs(vision_model: BlipVisionModel, text_model: BlipTextModel) -> dict[str, Graph]:
    size = vision_model.config.image_size
    encoder = Graph(
        module=_ImageEncoder(vision_model),
        inputs={"pixel_values": torch.rand(2, 3, size, size)},
        axes={"pixel_values": {0: "n"}, "last_hidden_state": {0: "n"}},
        outputs=["last_hidden_state"],
    )
    return {IMAGE_ENCODER: encoder, IMAGE_MEMORY: _memory_graph(text_model, _num_states(vision_model))}


def _num_states(vision_model: BlipVisionModel) -> int:
    return vision_model.embeddings.num_positions


def _memory_graph(text_model: BlipTextModel, num_states: int) -> Graph:
    names = _layer_names(text_model, "key", "value")
    return Graph(
        module=_Memory(text_model),
        inputs={"states": torch.rand(2, num_states, text_model.config.encoder_hidden_size)},
        axes={"states": {0: "n", 1: "p"}, **{key: {0: "n", 2: "p"} for key in names}},
        outputs=names,
    )


def _text_graph(text_model: BlipTextModel) -> Graph:
    inputs = {"input_ids": torch.ones(3, 4, dtype=torch.long), "attention_mask": torch.ones(3, 4, dtype=torch.long)}
    return Graph(
        module=_TextEncoder(text_model),
        inputs=inputs,
        axes={**{key: {0: "b", 1: "t"} for key in inputs}, "last_hidden_state": {0: "b"}},
        outputs=["last_hidden_state"],
    )


def _grounded_graph(text_model: BlipTextModel, num_states: int, *, cls_only: bool) -> Graph:
    texts = {"input_ids": torch.ones(6, 4, dtype=torch.long), "attention_mask": torch.ones(6, 4, dtype=torch.long)}
    memory = _layer_inputs(text_model, ("key", "value"), rows=2, length=num_states)
    return Graph(
        module=_GroundedEncoder(text_model, cls_only),
        inputs={**texts, **memory},
        axes={
            **{key: {0: "b", 1: "t"} for key in texts},
            **{key: {0: "n", 2: "p"} for key in memory},
            "last_hidden_state": {0: "b"} if cls_only else {0: "b", 1: "t"},
        },
        outputs=["last_hidden_state"],
    )


def _decoder_graph(text_decoder: BlipTextLMHeadModel, num_states: int, *, has_mask: bool = False) -> Graph:
    model, length, num_past = text_decoder.bert, 4, 5
    inputs = {
        "input_ids": torch.ones(6, length, dtype=torch.long),
        "position_ids": torch.arange(num_past, num_past + length).expand(6, -1).contiguous(),
        "attention_mask": torch.ones(6, 1, length, num_past + length, dtype=torch.bool).tril(num_past),
    }
    axes = {**{key: {0: "b", 1: "t"} for key in inputs}, "attention_mask": {0: "b", 2: "t", 3: "q + t"}}
    if has_mask:
        inputs["memory_mask"], axes["memory_mask"] = torch.ones(2, num_states, dtype=torch.long), {0: "n", 1: "p"}
    memory = _layer_inputs(model, ("key", "value"), rows=2, length=num_states)
    past = _layer_inputs(model, ("past_key", "past_value"), rows=6, length=num_past)
    new = _layer_names(model, "new_key", "new_value")
    axes |= {**{key: {0: "n", 2: "p"} for key in memory}, **{key: {0: "b", 2: "q"} for key in past}}
    axes |= {"logits": {0: "b", 1: "t"}, **{key: {0: "b", 2: "t"} for key in new}}
    return Graph(
        module=_TextDecoder(text_decoder, has_mask),
        inputs={**inputs, **memory, **past},
        axes=axes,
        outputs=["logits", *new],
    )


def _layer_names(text_model: BlipTextModel, *kinds: str) -> list[str]:
    return [f"{kind}.{idx}" for kind in kinds for idx in range(len(text_model.encoder.layer))]


def _layer_inputs(text_model: BlipTextModel, kinds: Sequence[str], *, rows: int, length: int) -> dict[str, Tensor]:
    config = text_model.config
    shape = (rows, config.num_attention_heads, length, config.hidden_size // config.num_attention_heads)
    return {name: torch.rand(shape) for name in _layer_names(text_model, *kinds)}


__all__ = ["Graph", "graphs_of"]
