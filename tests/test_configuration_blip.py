# SPDX-License-Identifier: BSD-3-Clause
"""Configurations: defaults, and overrides on loading."""

import logging

import pytest
import transformers
from huggingface_hub.errors import StrictDataclassError

import blip_hf
from blip_hf import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForQuestionAnswering,
    BlipTextConfig,
    BlipVisionConfig,
)
from tests.support.tiny_models import TEXT, VISION, tiny_batch, tiny_config


def test_defaults_equal_those_of_blip_and_are_saved(tmp_path):
    config = BlipConfig()
    config.save_pretrained(tmp_path)
    for loaded in (config, BlipConfig.from_pretrained(tmp_path)):
        text, vision = loaded.text_config, loaded.vision_config
        assert (text.num_attention_heads, vision.num_attention_heads) == (12, 12)
        assert (text.hidden_dropout_prob, text.attention_probs_dropout_prob) == (0.1, 0.1)
        assert (text.layer_norm_eps, vision.layer_norm_eps) == (1e-12, 1e-6)
        assert (text.initializer_range, vision.initializer_range) == (0.02, 0.02)
        assert (text.bos_token_id, text.enc_token_id, loaded.label_smoothing) == (30522, 30523, 0.1)


def test_conflicting_label_smoothing_raises():
    with pytest.raises(ValueError, match=r"0\.1 in BlipConfig and 0\.2 in its text_config"):
        BlipConfig(label_smoothing=0.1, text_config={"label_smoothing": 0.2})


@pytest.mark.parametrize(
    "overrides", [{"label_smoothing": 0.0}, {"text_config": {"label_smoothing": 0.0}}, {"text_config": BlipTextConfig}]
)
def test_label_smoothing_given_on_loading_is_used_and_saved(tmp_path, overrides):
    BlipForConditionalGeneration(tiny_config()).save_pretrained(tmp_path / "first")
    if overrides == {"text_config": BlipTextConfig}:
        overrides = {"text_config": BlipTextConfig(**TEXT, encoder_hidden_size=24, label_smoothing=0.0)}
    model = BlipForConditionalGeneration.from_pretrained(tmp_path / "first", **overrides)
    model.save_pretrained(tmp_path / "second")
    for config in (model.config, BlipConfig.from_pretrained(tmp_path / "second")):
        assert (config.label_smoothing, config.text_config.label_smoothing) == (0.0, 0.0)
        assert config.text_config.hidden_size == TEXT["hidden_size"]
    assert model.text_decoder.config.label_smoothing == 0.0
    with pytest.raises(ValueError, match=r"0\.3 in BlipConfig and 0\.2 in its text_config"):
        BlipConfig.from_pretrained(tmp_path / "first", label_smoothing=0.3, text_config={"label_smoothing": 0.2})


def test_a_config_without_heads_warns(caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    BlipConfig.from_dict({"text_config": {"hidden_size": 768}, "vision_config": {"layer_norm_eps": 1e-5}})
    logger.removeHandler(caplog.handler)
    logging.getLogger("blip_hf").removeHandler(caplog.handler)
    assert "text_config.num_attention_heads" in caplog.text


def upstream_config(**fields):
    text = {name: value for name, value in TEXT.items() if name not in ("cls_token_id", "enc_token_id")}
    return transformers.BlipConfig(text_config=text, vision_config=dict(VISION), image_text_hidden_size=8, **fields)


def assert_converted(config):
    """The values are those given to transformers; new fields have our defaults."""
    text, vision = config.text_config, config.vision_config
    assert (type(text), type(vision)) == (BlipTextConfig, BlipVisionConfig)
    assert (text.hidden_size, text.num_attention_heads, text.hidden_dropout_prob) == (16, 2, 0.0)
    assert (vision.hidden_size, vision.layer_norm_eps) == (24, 1e-5)
    assert (text.enc_token_id, text.cls_token_id, text.encoder_hidden_size) == (TEXT["bos_token_id"] + 1, 101, 24)
    assert vision.drop_path_rate == 0.0


def test_sub_configurations_of_transformers_are_converted(tmp_path):
    theirs = upstream_config()
    text, vision = theirs.text_config, theirs.vision_config
    text_values = text.to_dict()
    config = BlipConfig(text_config=text, vision_config=vision)
    assert_converted(config)
    assert text.to_dict() == text_values
    assert_converted(BlipConfig(text_config=text, vision_config=dict(VISION, layer_norm_eps=1e-5)))

    tiny_config().save_pretrained(tmp_path)
    assert_converted(BlipConfig.from_pretrained(tmp_path, text_config=text, vision_config=vision))
    assigned = tiny_config()
    assigned.text_config, assigned.vision_config = text, vision
    model = BlipForQuestionAnswering(assigned)
    assert_converted(model.config)
    batch = tiny_batch()
    assert model(**batch, labels=batch["input_ids"]).loss.isfinite()


@pytest.mark.parametrize(
    "name",
    [
        "BlipForConditionalGeneration",
        "BlipForImageTextRetrieval",
        "BlipForPreTraining",
        "BlipForQuestionAnswering",
        "BlipForRetrievalTraining",
        "BlipForVisualReasoning",
        "BlipModel",
    ],
)
def test_a_configuration_of_transformers_fits_each_model(name):
    model_class = getattr(blip_hf, name)
    theirs = upstream_config(label_smoothing=0.3)  # which transformers ignores
    theirs.text_config.label_smoothing = 0.2
    theirs._attn_implementation = {"": "sdpa", "text_config": "eager", "vision_config": "sdpa"}
    config = model_class(theirs).config
    assert type(config) is model_class.config_class
    assert_converted(config)
    assert (config.label_smoothing, config.image_text_hidden_size) == (0.2, 8)
    assert (config.text_config._attn_implementation, config.vision_config._attn_implementation) == ("eager", "sdpa")
    assert type(theirs) is transformers.BlipConfig
    assert type(theirs.text_config) is transformers.BlipTextConfig


def test_our_configuration_fits_models_with_more_fields():
    config = blip_hf.BlipForRetrievalTraining(tiny_config(itm_start_token="cls")).config
    assert type(config) is blip_hf.BlipRetrievalTrainingConfig
    assert (config.itm_start_token, config.queue_size) == ("cls", 57600)


def test_configurations_of_other_models_are_refused():
    with pytest.raises(
        TypeError, match=r"BertConfig of model type 'bert', expected a BlipTextConfig or .* blip_text_model"
    ):
        BlipConfig(text_config=transformers.BertConfig())
    with pytest.raises(TypeError, match=r"BlipVisionConfig of model type 'blip_vision_model', expected a BlipConfig"):
        BlipForConditionalGeneration(BlipVisionConfig())
    with pytest.raises(
        TypeError, match=r"expected a BlipRetrievalTrainingConfig or .* blip or blip_retrieval_training"
    ):
        blip_hf.BlipForRetrievalTraining(blip_hf.BlipPreTrainingConfig())


@pytest.mark.parametrize("field", ["image_size", "patch_size"])
def test_sizes_of_two_numbers_are_refused(field, tmp_path):
    # The image encoder is square: it would fail in the middle of its construction.
    with pytest.raises(StrictDataclassError, match=field):
        BlipVisionConfig(**{**VISION, field: [16, 16]})
    config = transformers.BlipConfig(vision_config={**VISION, field: [16, 16]}, text_config=TEXT)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=field):
        BlipConfig.from_pretrained(tmp_path)
