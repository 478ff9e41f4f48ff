# SPDX-License-Identifier: BSD-3-Clause
"""Returned attentions: they lie on the path to the loss (Grad-CAM), and `generate` returns those of images."""

import pytest
import torch
from torch.testing import assert_close

from blip_hf import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipForVisualReasoning,
    BlipTextModel,
)
from tests.support.batches import caption_batch, nlvr2_batch, weighted_vqa_batch
from tests.support.tiny_models import SUMMATION_TOLERANCE, tiny_batch, tiny_config, tiny_nlvr2_config


def itm_batch():
    """Three texts about one image."""
    batch = tiny_batch()
    return batch | {"pixel_values": batch["pixel_values"][:1], "labels": torch.tensor([1, 0, 1])}


HEADS = {
    "captioner": (BlipForConditionalGeneration, tiny_config, caption_batch),
    "itm": (BlipForImageTextRetrieval, tiny_config, itm_batch),
    "vqa": (BlipForQuestionAnswering, tiny_config, weighted_vqa_batch),
    "nlvr2": (BlipForVisualReasoning, tiny_nlvr2_config, nlvr2_batch),
}


def make_head(name):
    model_class, make_config, make_batch = HEADS[name]
    model = model_class(make_config()).eval()
    model.set_attn_implementation("eager")
    return model, make_batch()


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_each_returned_attention_and_state_has_a_gradient(name, is_training):
    model, batch = make_head(name)
    output = model.train(is_training)(**batch, output_attentions=True, output_hidden_states=True)
    returned = {
        f"{field}.{layer}": tensor
        for field in ("cross_attentions", "attentions", "decoder_attentions", "decoder_hidden_states", "hidden_states")
        for layer, tensor in enumerate(output.get(field) or ())
    }
    assert "cross_attentions.1" in returned
    for tensor in returned.values():
        tensor.retain_grad()
    output.loss.backward()
    assert [name for name, tensor in returned.items() if tensor.grad is None or not tensor.grad.any()] == []


@pytest.mark.parametrize("name", HEADS)
def test_outputs_with_attentions_equal_those_without(name):
    model, batch = make_head(name)
    loss, gradients = [], []
    for options in ({}, {"output_attentions": True}):
        model.zero_grad()
        loss.append(model(**batch, **options).loss)
        loss[-1].backward()
        gradients.append({key: value.grad for key, value in model.named_parameters() if value.grad is not None})
    assert_close(*loss)
    assert_close(*gradients, **SUMMATION_TOLERANCE)


def test_attentions_of_picked_images_are_those_of_their_pairs():
    """Rows 0 to 3 read two images in order, row 4 reads the first image."""
    model = BlipTextModel(tiny_config().text_config, add_pooling_layer=False).eval()
    texts, images = tiny_batch((6,) * 5)["input_ids"], torch.randn(2, 5, 24)
    own_images = images[torch.tensor([0, 0, 1, 1, 0])]
    picked = model(texts, encoder_hidden_states=images, image_index=torch.tensor([0]), output_attentions=True)
    paired = model(texts, encoder_hidden_states=own_images, output_attentions=True)
    assert picked.cross_attentions[0].shape == (5, 2, 6, 5)
    assert_close(picked.cross_attentions, paired.cross_attentions, **SUMMATION_TOLERANCE)
    assert_close(picked.last_hidden_state, paired.last_hidden_state, **SUMMATION_TOLERANCE)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("name", ["captioner", "vqa"])
def test_generate_returns_the_cross_attentions_of_each_new_token(name, num_beams):
    model, batch = make_head(name)
    inputs = {key: batch[key] for key in ("pixel_values", "input_ids", "attention_mask")}
    settings = {"num_beams": num_beams, "max_new_tokens": 4, "min_new_tokens": 4, "return_dict_in_generate": True}
    output = model.generate(**inputs, **settings, output_attentions=True)
    decoder = model.text_decoder.bert
    num_keys = 5 if name == "captioner" else batch["input_ids"].shape[1]
    assert len(output.cross_attentions) == len(output.attentions) == 4
    for step, layers in enumerate(output.cross_attentions):
        assert len(layers) == len(decoder.encoder.layer)
        length = output.attentions[step][0].shape[2]
        assert layers[0].shape == (3 * num_beams, 2, length, num_keys)
    assert "cross_attentions" not in model.generate(**inputs, **settings)


def test_cross_attentions_of_generate_are_those_of_forward():
    model, batch = make_head("captioner")
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "return_dict_in_generate": True, "output_attentions": True}
    output = model.generate(batch["pixel_values"], **options)
    captions = output.sequences[:, :-1]
    expected = model(batch["pixel_values"], captions, output_attentions=True).cross_attentions
    for layer, attentions in enumerate(zip(*output.cross_attentions, strict=True)):
        assert_close(torch.cat(attentions, dim=2), expected[layer], **SUMMATION_TOLERANCE)
