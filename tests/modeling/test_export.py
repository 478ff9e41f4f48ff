# SPDX-License-Identifier: BSD-3-Clause
"""Graphs of the models (`torch.export`, `torch.jit.trace`) hold for other sizes than the ones they were made with."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.export import Dim, export
from torch.testing import assert_close

from blip_hf import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipForVisualReasoning,
    BlipModel,
)
from tests.support.tiny_models import (
    DEC,
    SUMMATION_TOLERANCE,
    VISION,
    seeded_generator,
    tiny_batch,
    tiny_config,
    tiny_nlvr2_config,
)


PATCH = VISION["patch_size"]
MATCHER = {"model_class": BlipForImageTextRetrieval, "output": "itm_score"}
HEADS = {
    "captioner": {"model_class": BlipForConditionalGeneration, "output": "logits"},
    "itm": MATCHER,
    "itc": MATCHER | {"options": {"use_itm_head": False}},
    "vqa": {"model_class": BlipForQuestionAnswering, "output": "logits"},
    "dual encoder": {"model_class": BlipModel, "output": "logits_per_text"},
    "nlvr2": {
        "model_class": BlipForVisualReasoning,
        "output": "logits",
        "make_config": partial(tiny_nlvr2_config, merge_from_layer=0),
    },
}


class Graph(nn.Module):
    """One output of a head, with tensors as positional arguments, as `torch.jit.trace` takes them."""

    def __init__(self, name):
        super().__init__()
        head = HEADS[name]
        torch.manual_seed(0)
        self.name = name
        config = head.get("make_config", tiny_config)()
        for part in (config.text_config, config.vision_config):
            part.num_hidden_layers = 1
        self.head = head["model_class"](config).eval()
        self.output = head["output"]
        self.options = {"interpolate_pos_encoding": True, **head.get("options", {})}

    def forward(self, pixel_values, input_ids, attention_mask, decoder_input_ids=None):
        texts = {"input_ids": input_ids, "attention_mask": attention_mask}
        if decoder_input_ids is not None:
            texts["decoder_input_ids"] = decoder_input_ids
        return self.head(pixel_values=pixel_values, **texts, **self.options)[self.output]

    def inputs(self, batch_size, length, rows, columns):
        """Arguments of `forward` for images of `rows` x `columns` patches; the second text has padding."""
        lengths = [length, max(2, length - 2)] * batch_size
        batch = tiny_batch(lengths[:batch_size], first=DEC if self.name == "captioner" else 2, seed=batch_size)
        views = (2,) if self.name == "nlvr2" else ()
        shape = (batch_size, *views, 3, PATCH * rows, PATCH * columns)
        pixel_values = torch.randn(shape, generator=seeded_generator(length))
        inputs = (pixel_values, batch["input_ids"], batch["attention_mask"])
        answers = tiny_batch((4, 3) * batch_size, first=DEC, seed=7)["input_ids"][:batch_size]
        return (*inputs, answers) if self.name == "vqa" else inputs

    def dynamic_shapes(self):
        batch, length = Dim("batch", max=64), Dim("length", min=2, max=32)
        height, width = (Dim(name, min=2 * PATCH, max=64 * PATCH) for name in ("height", "width"))
        size = {3: height, 4: width} if self.name == "nlvr2" else {2: height, 3: width}
        shapes = ({0: batch, **size}, {0: batch, 1: length}, {0: batch, 1: length})
        return (*shapes, {0: batch}) if self.name == "vqa" else shapes


def assert_same_at_other_sizes(graph, model):
    """Compares both at other batch sizes, text lengths and image sizes, among them the configured one."""
    for size in ((1, 5, 2, 2), (3, 8, 3, 2), (5, 4, 2, 4)):
        inputs = model.inputs(*size)
        with torch.no_grad():
            assert_close(graph(*inputs), model(*inputs), **SUMMATION_TOLERANCE)


# "itm" and "dual encoder" contain all that "itc" computes. Strict exports take three times as long.
QUICK = [(name, False) for name in HEADS if name != "itc"] + [("itc", True)]
SLOW = [("itc", False), *((name, True) for name in HEADS if name != "itc")]


@pytest.mark.parametrize(("name", "strict"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_an_exported_program_takes_other_batches_texts_and_images(name, strict):
    model = Graph(name)
    program = export(model, model.inputs(2, 6, 3, 4), dynamic_shapes=model.dynamic_shapes(), strict=strict)
    assert_same_at_other_sizes(program.module(), model)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the tracer reads each attribute, also deprecated ones
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", HEADS)
def test_a_trace_takes_other_batches_texts_and_images(name, implementation):
    model = Graph(name)
    model.head.set_attn_implementation(implementation)
    graph = torch.jit.trace(model, model.inputs(2, 6, 3, 4), check_trace=False)
    assert_same_at_other_sizes(graph, model)
