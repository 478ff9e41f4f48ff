# SPDX-License-Identifier: BSD-3-Clause
"""Exported heads give what the heads give in PyTorch, for other sizes than those of the traces."""

import shutil

import pytest
import torch
from torch.testing import assert_close
from transformers import modeling_utils

from blip_hf import BlipCaptioner, answer_questions, match_texts, optimize_for_cpu
from blip_hf.evaluation.features import image_features, multimodal_embeds, text_features
from blip_hf.modeling.cpu import CPU_ATTENTION
from tests.support.exports import HEADS, tiny_head
from tests.support.processors import make_processor, random_photo


FORMATS = ("openvino", "onnx")
PHOTOS = [random_photo(seed) for seed in range(3)]
# What the issue trackers of both runtimes call equal in fp32.
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(params=FORMATS)
def both(request, exports):
    """A function from a head to the model in PyTorch and its export."""
    return lambda head: (tiny_head(head), exports.model(head, request.param))


def pixels(num_images):
    return make_processor()(images=PHOTOS[:num_images], return_tensors="pt")["pixel_values"]


def texts(*lines):
    return make_processor()(text=list(lines), role="contrast", return_tensors="pt")


@pytest.mark.parametrize(("num_images", "texts_per_image", "length"), [(1, 1, 2), (3, 1, 5), (2, 4, 1), (1, 5, 9)])
def test_logits_of_captions(both, num_images, texts_per_image, length):
    input_ids = torch.randint(
        5, 20, (num_images * texts_per_image, length), generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        expected, found = (
            model(pixel_values=pixels(num_images), input_ids=input_ids).logits for model in both("captioner")
        )
    assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 1},
        {"num_beams": 3, "min_length": 5},
        {"num_beams": 4, "num_return_sequences": 2},
        {"do_sample": True, "num_beams": 1, "top_p": 0.9, "num_return_sequences": 3},
        {"num_beams": 1, "repetition_penalty": 1.5, "max_new_tokens": 1},
    ],
    ids=str,
)
def test_generated_tokens(both, settings):
    generated = []
    for model in both("captioner"):
        torch.manual_seed(0)
        generated.append(model.generate(pixels(3), **{"max_length": 12, **settings}))
    assert_close(generated[1], generated[0], rtol=0, atol=0)


def test_prompts_of_different_lengths(both):
    prompts = make_processor()(text=["a", "a b c d"], return_tensors="pt")
    expected, found = (model.generate(pixels(2), **prompts, num_beams=2, max_length=12) for model in both("captioner"))
    assert_close(found, expected, rtol=0, atol=0)


def test_the_captioner_scores_and_matches(both, exports):
    captioners = []
    for model, matcher in zip(both("captioner"), both("matcher"), strict=True):
        captioners.append(BlipCaptioner(model, make_processor(), matcher=matcher, batch_size=2))
    expected, found = (each.caption(PHOTOS, num_return_sequences=2, return_scores=True) for each in captioners)
    assert [each.text for each in found] == [each.text for each in expected]
    for name in ("log_probability", "itm_probability"):
        assert_close(
            *(torch.tensor([getattr(each, name) for each in each_model]) for each_model in (found, expected)),
            **TOLERANCE,
        )


def test_image_memory_is_read_by_all_beams(both, monkeypatch):
    _, exported = both("captioner")
    rows = []
    graph = exported._graphs["text_decoder"]
    monkeypatch.setitem(
        exported._graphs,
        "text_decoder",
        lambda *inputs: rows.append((len(inputs[0]), len(inputs[3]))) or graph(*inputs),
    )
    exported.generate(pixels(2), num_beams=3, max_length=6)
    assert set(rows[1:]) == {(6, 2)}  # six beams, the keys of two images


def test_features_and_matching_scores(both):
    expected, found = both("matcher")
    processor, lines = make_processor(), ["a b", "c d e f g", "b"]
    for compute in (
        lambda model: image_features(model, processor, PHOTOS),
        lambda model: text_features(model, processor, lines),
        lambda model: multimodal_embeds(model, processor, PHOTOS, lines),
        lambda model: torch.tensor(
            [(each.itm_probability, each.itc_similarity) for each in match_texts(model, processor, PHOTOS, lines)]
        ),
    ):
        assert_close(compute(found), compute(expected), **TOLERANCE)


@pytest.mark.parametrize("use_itm_head", [True, False])
def test_forward_of_the_matcher(both, use_itm_head):
    batch = texts("a b", "c d e", "f", "a", "b c", "d")
    with torch.no_grad():
        expected, found = (
            model(pixel_values=pixels(3), use_itm_head=use_itm_head, **batch).itm_score for model in both("matcher")
        )
    assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("answer_list", [None, ["a", "b c", "d e f"]])
def test_answers(both, answer_list):
    expected, found = (
        answer_questions(model, make_processor(), PHOTOS, ["a b", "c d e f g"], answer_list=answer_list)
        for model in both("vqa")
    )
    assert [each.text for each in found] == [each.text for each in expected]
    assert_close(*(torch.tensor([each.confidence for each in answers]) for answers in (found, expected)), **TOLERANCE)


def test_losses_of_answers(both):
    labels = torch.tensor([[1, 7, 8, 3], [1, 9, 3, 0], [1, 5, 3, 0]])
    with torch.no_grad():
        expected, found = (
            model(pixel_values=pixels(3), labels=labels, **texts("a b", "c", "d e f")) for model in both("vqa")
        )
    assert_close(found.loss, expected.loss, **TOLERANCE)


def test_an_exported_model_says_what_it_cannot_do(exports, tmp_path):
    model = exports.model("captioner", "onnx")
    with pytest.raises(ValueError, match="output_attentions needs the model in PyTorch"):
        model(pixel_values=pixels(1), output_attentions=True)
    with pytest.raises(ValueError, match=r"reads images of 30 x 30 pixels only|reads images of \d+ x \d+ pixels only"):
        model(pixel_values=torch.zeros(1, 3, 64, 64))
    with pytest.raises(NotImplementedError, match="Copy its folder"):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cache_implementation"):
        model.generate(pixels(1), cache_implementation="static", max_length=6)


def test_optimize_for_cpu_does_not_warn_about_an_export(exports, monkeypatch):
    model, warnings = exports.model("captioner", "openvino"), []
    monkeypatch.setattr(modeling_utils.logger, "warning", warnings.append)
    optimize_for_cpu(model)
    model.set_attn_implementation(CPU_ATTENTION)  # what it calls on CPUs with bf16
    assert warnings == []


def test_the_digest_tells_exports_apart(exports):
    digests = {
        bytes(exports.model("captioner", *which).digest.tolist())
        for which in (("onnx",), ("openvino",), ("onnx", "int8"))
    }
    assert len(digests) == 3


@pytest.mark.parametrize("format", FORMATS)
def test_a_damaged_graph_is_named(exports, tmp_path, format):
    folder = shutil.copytree(exports.path("captioner", format), tmp_path / "export")
    for path in folder.glob("text_decoder.*"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"The graph .*text_decoder cannot be opened: .* Export the model again\."):
        HEADS["captioner"].from_pretrained(folder)
