# SPDX-License-Identifier: BSD-3-Clause
"""Configurations: defaults, and overrides on loading."""

import logging

import pytest

from blip_hf import BlipConfig, BlipForConditionalGeneration, BlipTextConfig
from tests.support.tiny_models import TEXT, tiny_config


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
