# SPDX-License-Identifier: BSD-3-Clause
"""`explain`: maps against gradients computed by hand, their symmetries, words of several pieces, and overlays."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from blip_hf import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    CaptionSettings,
    explain,
)
from blip_hf.explanation import Explanation
from blip_hf.modeling.exported.models import ExportedMatcher
from tests.support.tiny_models import SUMMATION_TOLERANCE, tiny_model_for
from tests.support.vocabularies import LETTERS, make_processor


QUADRANTS = np.array([[[200, 30, 30], [30, 200, 30]], [[30, 30, 200], [220, 220, 90]]], dtype=np.uint8)
TEXT = "c a d"


@pytest.fixture(scope="module")
def image():
    """Four colours, each in one patch."""
    return Image.fromarray(QUADRANTS).resize((32, 32), Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def processor():
    """Without a prompt."""
    processor = make_processor()
    processor.caption_settings = CaptionSettings(prompt="", min_length=2)
    return processor


@pytest.fixture(params=[BlipForImageTextRetrieval, BlipForConditionalGeneration], ids=["matcher", "captioner"])
def model(request, processor):
    return tiny_model_for(request.param, processor, num_hidden_layers=3)


@pytest.fixture
def matcher(processor):
    return tiny_model_for(BlipForImageTextRetrieval, processor, num_hidden_layers=3)


@pytest.fixture
def captioner(processor):
    return tiny_model_for(BlipForConditionalGeneration, processor, num_hidden_layers=3)


def maps_of(attention, row):
    """Maps of the tokens of a row, from an attention with its gradient: a loop over tokens and patches."""
    _, num_heads, num_tokens, num_keys = attention.shape
    maps = torch.zeros(num_tokens, 2, 2)
    for token in range(num_tokens):
        for key in range(1, num_keys):
            products = attention[row, :, token, key] * attention.grad[row, :, token, key]
            maps[token, (key - 1) // 2, (key - 1) % 2] = products.clamp(min=0).sum() / num_heads
    return maps.detach()


@pytest.mark.parametrize("layer", [0, 1])
def test_maps_of_a_matcher_are_those_of_a_padded_batch_by_hand(matcher, processor, image, layer):
    explanation = explain(matcher, processor, image, TEXT, layer=layer)
    inputs = processor([image], ["b", TEXT, "e f g h a b c"], role="matching", return_tensors="pt")
    assert inputs["attention_mask"].sum(dim=1).tolist() == [3, 5, 9]
    output = matcher(**inputs, output_attentions=True)
    attention = output.cross_attentions[layer]
    attention.retain_grad()
    output.itm_logits[1, 1].backward()
    assert explanation.words == ("c", "a", "d")
    assert explanation.maps.any(dim=(1, 2)).all()
    assert_close(explanation.maps, maps_of(attention, row=1)[1:4], **SUMMATION_TOLERANCE)
    assert explanation.score == pytest.approx(output.itm_logits[1, 1].item(), abs=1e-5)


@pytest.mark.parametrize("layer", [0, 2])
def test_maps_of_a_captioner_are_those_of_the_loss_of_each_token(captioner, processor, image, layer):
    captioner.text_decoder.label_smoothing = 0.0
    explanation = explain(captioner, processor, image, TEXT, layer=layer)
    inputs = processor([image], [TEXT], role="lm", return_tensors="pt")
    log_probabilities = []
    for position in range(1, 5):
        labels = torch.full_like(inputs["labels"], -100)
        labels[0, position] = inputs["labels"][0, position]
        output = captioner(**{**inputs, "labels": labels}, output_attentions=True)
        attention = output.cross_attentions[layer]
        attention.retain_grad()
        (-output.loss).backward()
        log_probabilities.append(-output.loss.item())
        if position < 4:  # not [SEP]
            # The position before a token predicts it.
            assert_close(
                explanation.maps[position - 1], maps_of(attention, row=0)[position - 1], **SUMMATION_TOLERANCE
            )
    assert explanation.score == pytest.approx(sum(log_probabilities), abs=1e-4)


def test_maps_follow_the_content_of_patches(model, processor, image):
    model.vision_model.embeddings.position_embedding.data.zero_()
    maps = explain(model, processor, image, TEXT).maps
    turned = explain(model, processor, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), TEXT).maps
    assert not torch.allclose(maps, maps.flip(2), rtol=0.1)
    assert_close(turned, maps.flip(2), **SUMMATION_TOLERANCE)


def test_weights_gradients_and_mode_are_kept(model, processor, image):
    expected = explain(model, processor, image, TEXT)
    model.train().requires_grad_(False)
    with torch.inference_mode():
        frozen = explain(model, processor, image, TEXT)
    assert_close(frozen.maps, expected.maps, rtol=0, atol=0)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_word_of_several_pieces_has_their_mean(image):
    plain = make_processor(("dog", "s", "a"))
    pieces = make_processor(("dog", "##s", "a"))  # the same ids
    matcher = tiny_model_for(BlipForImageTextRetrieval, plain)
    one = explain(matcher, pieces, image, "A dogs, a")
    two = explain(matcher, plain, image, "a dog s , a")
    assert one.words == ("a", "dogs,", "a")
    assert two.words == ("a", "dog", "s", ",", "a")
    assert_close(one.maps[1], two.maps[1:4].mean(dim=0))
    assert_close(one.maps[[0, 2]], two.maps[[0, 4]])


def test_the_prompt_of_a_captioner_is_read_but_not_explained(captioner, processor, image):
    whole = explain(captioner, processor, image, "g h c a d")
    with_prompt = explain(captioner, processor, image, TEXT, prompt="g h ")
    assert with_prompt.words == ("c", "a", "d")
    assert_close(with_prompt.maps, whole.maps[2:])
    settings = make_processor()
    settings.caption_settings = CaptionSettings(prompt="g h ", min_length=2)
    assert_close(explain(captioner, settings, image, TEXT).maps, with_prompt.maps)


def test_the_default_layer_is_that_of_lavis(processor, image):
    layers = {
        number: explain(
            tiny_model_for(BlipForImageTextRetrieval, processor, num_hidden_layers=number), processor, image, "a"
        ).layer
        for number in (2, 3, 6, 12)
    }
    assert layers == {2: 0, 3: 1, 6: 3, 12: 7}


def test_images_that_are_not_square(model):
    processor = make_processor()
    processor.image_processor.size = {"height": 48, "width": 32}
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 50, 3), dtype=np.uint8))
    explanation = explain(model, processor, photo, TEXT, interpolate_pos_encoding=True)
    assert explanation.maps.shape == (3, 3, 2)
    assert explanation.overlay("a").size == (50, 70)
    with pytest.raises(ValueError, match="interpolate_pos_encoding"):
        explain(model, processor, photo, TEXT)


def test_an_overlay_is_red_where_the_map_has_its_maximum():
    maps = torch.tensor([[[0.0, 0.0], [0.2, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    image = Image.new("RGB", (60, 40), "white")
    explanation = Explanation(image=image, words=("ring", "a"), maps=maps, layer=0, score=0.0)
    overlay = explanation.overlay("ring", opacity=1.0)
    red, _, blue = overlay.getpixel((0, 39))
    assert red > 190 > 20 > blue
    red, _, blue = overlay.getpixel((59, 0))
    assert red < 20 < 150 < blue
    assert explanation.overlay(1, opacity=1.0).getcolors() == [(2400, (0, 0, 160))]  # without attention, no maximum
    assert explanation.overlay(0, opacity=0.0).getcolors() == [(2400, (255, 255, 255))]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (" !", {}, "expected a text with words"),
        ("a", {"layer": 2}, "Pass 0 to 1"),
        ("a", {"prompt": "b"}, "captioning models only"),
    ],
)
def test_what_cannot_be_explained_is_an_error(matcher, processor, image, text, options, message):
    with pytest.raises(ValueError, match=message):
        explain(matcher, processor, image, text, **options)


def test_words_that_do_not_fit_are_left_out(matcher, processor, image):
    words = explain(matcher, processor, image, " ".join(LETTERS[:10] * 3) + " a a a a").words
    assert len(words) == 30  # as many as `pre_caption` keeps
    with pytest.raises(ValueError, match="No word of"):
        explain(matcher, processor, image, "a" + ",b" * 60)


def test_unknown_words_and_models_are_errors(matcher, processor, image):
    explanation = explain(matcher, processor, image, TEXT)
    with pytest.raises(ValueError, match="no word 'z'"):
        explanation.overlay("z")
    with pytest.raises(ValueError, match="no word 3"):
        explanation.overlay(3)
    with pytest.raises(ValueError, match="Pass a value in"):
        explanation.overlay("a", opacity=2)
    with pytest.raises(ValueError, match="exported model computes no gradients"):
        explain(ExportedMatcher.__new__(ExportedMatcher), processor, image, TEXT)
    with pytest.raises(ValueError, match="BlipForQuestionAnswering cannot be explained"):
        explain(tiny_model_for(BlipForQuestionAnswering, processor), processor, image, TEXT)
