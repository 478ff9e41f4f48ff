# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints, outputs and gradients equal those of transformers."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.testing import assert_close

import blip_hf
from blip_hf import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForPreTraining,
    BlipForQuestionAnswering,
)
from tests.support.tiny_models import CLS, DEC, TEXT, VISION, tiny_batch, tiny_config, tiny_pretraining_config


TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
BACKENDS = ["eager", "sdpa"]
HEADS = ["BlipForConditionalGeneration", "BlipForImageTextRetrieval", "BlipModel"]
# The answer decoder of transformers projects question states from the image width.
VISION_AS_WIDE_AS_TEXT = VISION | {"hidden_size": TEXT["hidden_size"]}


def upstream_model(name):
    text_config = {key: value for key, value in TEXT.items() if key not in ("cls_token_id", "enc_token_id")}
    vision_config = VISION_AS_WIDE_AS_TEXT if name == "BlipForQuestionAnswering" else VISION
    config = transformers.BlipConfig(
        text_config=text_config | {"label_smoothing": 0.1}, vision_config=dict(vision_config), image_text_hidden_size=8
    )
    return getattr(transformers, name)(config).eval()


def load_ours(name, path, **kwargs):
    model, info = getattr(blip_hf, name).from_pretrained(path, output_loading_info=True, **kwargs)
    assert not any(info.values()), info
    return model


@pytest.fixture
def pair(tmp_path, request):
    """A model saved by transformers and the same directory loaded here."""
    name, backend = request.param
    theirs = upstream_model(name)
    theirs.save_pretrained(tmp_path)
    return theirs, load_ours(name, tmp_path, attn_implementation=backend)


def pairs(name):
    return pytest.mark.parametrize("pair", [(name, backend) for backend in BACKENDS], indirect=True)


def assert_same_gradients(ours, theirs):
    parameters = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        if parameter.grad is None:
            assert parameters[name].grad is None, name
        else:
            assert_close(parameters[name].grad, parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


def assert_equal_or_none(actual, expected, name):
    assert (actual is None) == (expected is None), name
    if expected is not None:
        assert_close(actual, expected, **TOLERANCE, msg=name)


@pairs("BlipForConditionalGeneration")
def test_captioner_outputs_and_gradients_equal_transformers(pair):
    theirs, ours = pair
    batch = tiny_batch(first=DEC)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    expected, actual = theirs(**batch, labels=labels), ours(**batch, labels=labels)
    assert_close(actual.loss, expected.loss, **TOLERANCE)
    assert_close(actual.image_embeds, expected.image_embeds, **TOLERANCE)
    real = batch["attention_mask"].bool()
    assert_close(actual.logits[real], expected.logits[real], **TOLERANCE)

    expected.loss.backward()
    actual.loss.backward()
    assert_same_gradients(ours, theirs)


@pairs("BlipForImageTextRetrieval")
@pytest.mark.parametrize("use_itm_head", [True, False])
def test_matcher_outputs_and_gradients_equal_transformers_with_cls(pair, use_itm_head):
    theirs, ours = pair
    batch = tiny_batch()
    expected = theirs(**batch, use_itm_head=use_itm_head)
    actual = ours(**batch, use_itm_head=use_itm_head, itm_start_token="cls")
    assert_close(actual.itm_score, expected.itm_score, **TOLERANCE)
    assert_close(actual[0], expected[0], **TOLERANCE)

    expected.itm_score.square().sum().backward()
    actual.itm_score.square().sum().backward()
    assert_same_gradients(ours, theirs)


@pairs("BlipForImageTextRetrieval")
@pytest.mark.parametrize("use_itm_head", [True, False])
@pytest.mark.parametrize("options", [{}, {"output_hidden_states": True}, {"output_attentions": True}])
def test_matcher_output_has_the_fields_and_order_of_transformers(pair, use_itm_head, options):
    theirs, ours = pair
    batch = tiny_batch() | {"use_itm_head": use_itm_head} | options
    expected = theirs(**batch)
    actual = ours(**batch, itm_start_token="cls")
    for name in type(expected).__dataclass_fields__:
        assert_equal_or_none(getattr(actual, name), getattr(expected, name), name)
    as_tuple = ours(**batch, itm_start_token="cls", return_dict=False)
    num_extra = 1 if options.get("output_attentions") and use_itm_head else 0  # cross-attentions, which theirs lacks
    expected = theirs(**batch, return_dict=False)
    assert len(as_tuple) == len(expected) + num_extra
    for index, value in enumerate(expected):
        assert_equal_or_none(as_tuple[index], value, str(index))


@pairs("BlipModel")
@pytest.mark.parametrize("options", [{}, {"output_hidden_states": True}, {"output_attentions": True}])
def test_dual_encoder_outputs_and_gradients_equal_transformers(pair, options):
    theirs, ours = pair
    batch = tiny_batch() | {"return_loss": True} | options
    batch["position_ids"] = torch.arange(1, 8).expand(3, -1)
    expected, actual = theirs(**batch), ours(**batch)
    assert list(actual) == list(expected)
    for index, value in enumerate(expected.to_tuple()):
        assert_close(actual.to_tuple()[index], value, **TOLERANCE)
    assert_close(ours(**batch, return_dict=False), theirs(**batch, return_dict=False), **TOLERANCE)

    expected.loss.backward()
    actual.loss.backward()
    assert_same_gradients(ours, theirs)


@pairs("BlipModel")
def test_dual_encoder_features_equal_transformers(pair):
    theirs, ours = pair
    ours.config.itm_start_token = "cls"
    batch = tiny_batch()
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for method, inputs in (
        ("get_text_features", text),
        ("get_text_features", text | {"position_ids": torch.arange(1, 8).expand(3, -1), "output_attentions": True}),
        ("get_image_features", {"pixel_values": batch["pixel_values"], "output_hidden_states": True}),
        ("get_multimodal_features", batch),
    ):
        expected = getattr(theirs, method)(**inputs)
        actual = getattr(ours, method)(**inputs)
        assert_close(actual[0], expected[0], **TOLERANCE)
        if method != "get_multimodal_features":
            assert list(actual) == list(expected)
            assert_close(actual.to_tuple(), expected.to_tuple(), **TOLERANCE)
            as_tuple = getattr(ours, method)(**inputs, return_dict=False)
            assert_close(as_tuple, getattr(theirs, method)(**inputs, return_dict=False), **TOLERANCE)


@pairs("BlipForImageTextRetrieval")
def test_enc_is_the_default_of_matching(pair):
    theirs, ours = pair
    batch = tiny_batch()
    scores = ours(**batch).itm_logits
    assert not torch.allclose(scores, theirs(**batch).itm_score, atol=1e-3)
    assert_close(scores, ours(**batch, itm_start_token="enc").itm_logits)


@pairs("BlipForConditionalGeneration")
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
@pytest.mark.parametrize("prompted", [False, True])
def test_generated_tokens_equal_transformers(pair, settings, prompted):
    theirs, ours = pair
    batch = tiny_batch(lengths=(5, 5))
    if not prompted:
        batch = {"pixel_values": batch["pixel_values"]}
    expected = theirs.generate(**{key: value.clone() for key, value in batch.items()}, max_new_tokens=8, **settings)
    assert_close(ours.generate(**batch, max_new_tokens=8, **settings), expected)


@pairs("BlipForQuestionAnswering")
def test_vqa_loss_and_gradients_equal_transformers_with_cls(pair):
    theirs, ours = pair
    ours.config.question_start_token = "cls"
    questions, answers = tiny_batch(lengths=(6, 6, 6)), tiny_batch(lengths=(4, 5, 3), first=DEC, seed=1)
    labels = answers["input_ids"].masked_fill(answers["attention_mask"] == 0, -100)
    batch = {**questions, "labels": labels, "decoder_input_ids": answers["input_ids"]}
    expected, actual = theirs(**batch), ours(**batch)
    assert_close(actual.loss, expected.loss, **TOLERANCE)
    assert_close(actual.image_embeds, expected.image_embeds, **TOLERANCE)
    assert_close(actual[1], expected[1], **TOLERANCE)

    expected.loss.backward()
    actual.loss.backward()
    assert_same_gradients(ours, theirs)


@pairs("BlipForQuestionAnswering")
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_generated_answers_equal_transformers_with_cls(pair, settings):
    theirs, ours = pair
    ours.config.question_start_token = "cls"
    questions = tiny_batch(lengths=(6, 6, 6))
    expected = theirs.generate(**questions, max_new_tokens=8, **settings)
    assert_close(ours.generate(**questions, max_new_tokens=8, **settings), expected)


@pytest.mark.parametrize("options", [{}, {"output_hidden_states": True}, {"output_attentions": True}])
@pytest.mark.parametrize("name", ["BlipForConditionalGeneration", "BlipForQuestionAnswering"])
def test_tuples_of_generating_models_begin_with_those_of_transformers(name, options, tmp_path):
    theirs = upstream_model(name)
    theirs.save_pretrained(tmp_path)
    ours = load_ours(name, tmp_path, question_start_token="cls")
    batch = tiny_batch(lengths=(6, 6, 6), first=DEC)
    batch |= {"labels": batch["input_ids"], "return_dict": False, **options}
    expected = theirs(**batch)
    assert_close(ours(**batch)[: len(expected)], expected, **TOLERANCE)


def test_vqa_checkpoint_opens_in_transformers(tmp_path):
    ours = BlipForQuestionAnswering(
        BlipConfig(text_config=dict(TEXT), vision_config=dict(VISION_AS_WIDE_AS_TEXT), question_start_token="cls")
    ).eval()
    ours.save_pretrained(tmp_path)
    theirs, info = transformers.BlipForQuestionAnswering.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    questions = tiny_batch(lengths=(6, 6, 6))
    labels = tiny_batch(lengths=(4, 4, 4), first=DEC, seed=1)["input_ids"]
    assert_close(theirs(**questions, labels=labels).loss, ours(**questions, labels=labels).loss, **TOLERANCE)


@pytest.mark.parametrize("name", HEADS)
def test_checkpoint_opens_in_transformers(name, tmp_path):
    ours = getattr(blip_hf, name)(tiny_config()).eval()
    ours.save_pretrained(tmp_path)
    theirs, info = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert theirs.config.text_config.num_attention_heads == 2
    batch = tiny_batch(first=DEC)
    kwargs = {"itm_start_token": "cls"} if name == "BlipForImageTextRetrieval" else {}
    if kwargs:
        batch["input_ids"][:, 0] = CLS
    with torch.no_grad():
        expected, actual = theirs(**batch), ours(**batch, **kwargs)
    assert_close(actual[0], expected[0], **TOLERANCE)


@pytest.mark.parametrize("name", [*HEADS, "BlipForQuestionAnswering"])
def test_saved_tensors_have_the_names_and_shapes_of_transformers(name, tmp_path):
    upstream_model(name).save_pretrained(tmp_path / "theirs")
    load_ours(name, tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    theirs, ours = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "ours"))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert_close(ours[key], value, atol=0, rtol=0, msg=key)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "blip"


def test_old_bin_files_with_position_ids_load(tmp_path):
    theirs = upstream_model("BlipForConditionalGeneration")
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["text_decoder.bert.embeddings.position_ids"] = torch.arange(32)[None]
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    ours = load_ours("BlipForConditionalGeneration", tmp_path)
    batch = tiny_batch(first=DEC)
    assert_close(ours(**batch).logits[0], theirs(**batch).logits[0], **TOLERANCE)


@pytest.mark.parametrize(
    ("saved", "loaded", "missing"),
    [
        ("BlipForConditionalGeneration", "BlipForImageTextRetrieval", "itm_head"),
        ("BlipForImageTextRetrieval", "BlipForConditionalGeneration", "text_decoder"),
        ("BlipForConditionalGeneration", "BlipForPreTraining", "itm_head"),
        ("BlipForQuestionAnswering", "BlipForImageTextRetrieval", "itm_head"),
    ],
)
def test_the_wrong_class_raises_and_names_the_right_one(saved, loaded, missing, tmp_path):
    upstream_model(saved).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"no weights for .*{missing}.*Load it with {saved}"):
        getattr(blip_hf, loaded).from_pretrained(tmp_path)


def test_new_heads_are_random_on_request(tmp_path):
    upstream_model("BlipForConditionalGeneration").save_pretrained(tmp_path)
    model = BlipForImageTextRetrieval.from_pretrained(tmp_path, allow_new_heads=True)
    assert 0 < model.itm_head.weight.std() < 1


def test_exported_heads_open_in_transformers_without_momentum(tmp_path):
    model = BlipForPreTraining(tiny_pretraining_config()).eval()
    batch = tiny_batch(first=DEC)
    model.export_captioner().save_pretrained(tmp_path / "captioner")
    model.export_retriever().save_pretrained(tmp_path / "retriever")
    for name, folder in zip(HEADS[:2], ("captioner", "retriever"), strict=True):
        theirs, info = getattr(transformers, name).from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not any(info.values()), info
        head = getattr(blip_hf, name).from_pretrained(tmp_path / folder)
        kwargs = {"itm_start_token": "cls"} if name == HEADS[1] else {}
        assert_close(head(**batch, **kwargs)[0], theirs(**batch)[0], **TOLERANCE)


def test_exported_captioner_shares_its_weights():
    model = BlipForPreTraining(tiny_pretraining_config())
    captioner = model.export_captioner()
    assert isinstance(captioner, BlipForConditionalGeneration)
    assert captioner.get_input_embeddings().weight is model.get_input_embeddings().weight
    assert captioner.get_output_embeddings().weight is captioner.get_input_embeddings().weight


def test_every_class_of_transformers_exists_under_its_name():
    names = {name for name in dir(transformers.models.blip) if name.startswith("Blip")}
    assert {"BlipModel", "BlipTextPreTrainedModel", "BlipImageProcessorPil"} <= names
    assert sorted(name for name in names | {"BlipImageProcessorFast"} if not hasattr(blip_hf, name)) == []


@pytest.mark.parametrize("name", ["BlipImageProcessor", "BlipImageProcessorPil", "BlipImageProcessorFast"])
def test_image_processors_of_all_names_save_the_name_of_transformers(name, tmp_path):
    getattr(blip_hf, name)(size=32).save_pretrained(tmp_path)
    assert (
        json.loads((tmp_path / "preprocessor_config.json").read_text())["image_processor_type"] == "BlipImageProcessor"
    )
    assert transformers.BlipImageProcessorPil.from_pretrained(tmp_path).size["height"] == 32
