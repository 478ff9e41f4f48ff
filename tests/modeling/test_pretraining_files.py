# SPDX-License-Identifier: BSD-3-Clause
"""Saving, loading and initialisation of pre-training models."""

import logging

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import load_file
from torch.testing import assert_close

from blip_hf import BlipForPreTraining, BlipPreTrainingConfig, BlipProcessor
from blip_hf.data.vocabulary import train_wordpiece_tokenizer
from tests.support.momentum import assert_momentum_encoder_is_new
from tests.support.tiny_models import TEXT, VISION, tiny_batch, tiny_pretraining_config


def moved_model():
    """A model whose temperature, momentum encoder and queue differ from those of a new one."""
    model = BlipForPreTraining(tiny_pretraining_config())
    with torch.no_grad():
        model.temp.fill_(0.123)
        for parameter in model.momentum_towers.parameters():
            parameter.add_(1.0)
    model.enqueue(model(**tiny_batch()))
    return model


def assert_queue_is_fresh(model):
    for features in (model.queue.image_features, model.queue.text_features):
        assert_close(features.norm(dim=-1), torch.ones(12))
    assert (model.queue.image_ids == -100).all()
    assert model.queue.num_enqueued == 0


def assert_text_parts_are_tied(model):
    """Encoder and decoder share all parameters except self-attention with its output."""
    encoder, decoder = (
        dict(text_model.named_parameters()) for text_model in (model.text_encoder, model.text_decoder.bert)
    )
    assert encoder.keys() == decoder.keys()
    for name, parameter in encoder.items():
        assert (parameter is decoder[name]) == (".attention." not in name), name
    head, word_embeddings = model.text_decoder.cls.predictions, decoder["embeddings.word_embeddings.weight"]
    assert head.decoder.weight is word_embeddings
    assert head.decoder.bias is head.bias


@pytest.fixture
def matcher_path(tmp_path):
    """A matching checkpoint written by plain transformers."""
    text_config = {name: value for name, value in TEXT.items() if name not in ("cls_token_id", "enc_token_id")}
    config = transformers.BlipConfig(text_config=text_config, vision_config=dict(VISION), image_text_hidden_size=8)
    transformers.BlipForImageTextRetrieval(config).save_pretrained(tmp_path)
    return tmp_path


def test_a_plain_matching_checkpoint_starts_pretraining(matcher_path):
    model = BlipForPreTraining.from_pretrained(matcher_path, config=tiny_pretraining_config(), allow_new_heads=True)
    saved = load_file(matcher_path / "model.safetensors")
    state = model.state_dict()
    for name in ("vision_model.post_layernorm.weight", "itm_head.weight", "vision_proj.weight"):
        assert torch.equal(state[name], saved[name]), name
    self_attention = "text_encoder.encoder.layer.1.attention.self.query.weight"
    assert torch.equal(state[self_attention], saved[self_attention])
    assert model.temp.item() == pytest.approx(0.07)
    assert_queue_is_fresh(model)
    assert_momentum_encoder_is_new(model)
    assert_text_parts_are_tied(model)
    assert all(value.isfinite().all() for value in state.values())


def test_a_matching_checkpoint_gives_the_shared_text_parts(matcher_path):
    """Weights saved under the encoder names only must also load into the decoder."""
    model = BlipForPreTraining.from_pretrained(matcher_path, config=tiny_pretraining_config(), allow_new_heads=True)
    saved = load_file(matcher_path / "model.safetensors")
    for name, value in model.text_encoder.state_dict().items():
        assert torch.equal(value, saved[f"text_encoder.{name}"]), name


def test_a_plain_matching_checkpoint_needs_permission(matcher_path):
    with pytest.raises(ValueError, match="allow_new_heads"):
        BlipForPreTraining.from_pretrained(matcher_path, config=tiny_pretraining_config())


def test_saved_files_hold_each_weight_once_and_no_training_state(tmp_path):
    model = moved_model()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert not [name for name in saved if name.startswith(("momentum_towers.", "queue."))]
    trained = dict(model.named_parameters())  # ties counted once
    assert len(saved) == sum(not name.startswith("momentum_towers.") for name in trained)
    assert sum(value.numel() for value in saved.values()) == sum(
        p.numel() for p in trained.values() if p.requires_grad
    )


def test_saved_model_loads_with_fresh_training_state_and_tied_weights(tmp_path):
    model = moved_model()
    model.save_pretrained(tmp_path)
    loaded, info = BlipForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert loaded.temp.item() == pytest.approx(0.123)
    online = dict(model.named_parameters())
    for name, parameter in loaded.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter, online[name]), name
    assert_queue_is_fresh(loaded)
    assert_momentum_encoder_is_new(loaded)
    assert_text_parts_are_tied(loaded)
    assert not any(parameter.requires_grad for parameter in loaded.momentum_towers.parameters())


def test_training_state_restores_a_saved_model(tmp_path):
    model = moved_model()
    model.save_pretrained(tmp_path)
    loaded = BlipForPreTraining.from_pretrained(tmp_path)
    state = model.training_state_dict()
    assert all(name.startswith(("momentum_towers.", "queue.")) for name in state)
    loaded.load_state_dict(state, strict=False)
    expected, actual = model.state_dict(), loaded.state_dict()
    assert expected.keys() == actual.keys()
    assert all(torch.equal(value, actual[name]) for name, value in expected.items())


def test_new_model_is_tied_and_its_momentum_encoder_has_equal_weights():
    model = BlipForPreTraining(tiny_pretraining_config())
    assert_text_parts_are_tied(model)
    assert_momentum_encoder_is_new(model)
    assert_queue_is_fresh(model)


def test_momentum_encoder_has_no_cross_attention():
    model = BlipForPreTraining(tiny_pretraining_config())
    assert not [name for name, _ in model.momentum_towers.named_parameters() if "crossattention" in name]


def test_config_round_trips_with_every_field(tmp_path):
    config = tiny_pretraining_config(
        queue_size=6, momentum=0.9, alpha=0.2, temperature_init_value=0.1, itm_start_token="cls", label_smoothing=0.3
    )
    config.save_pretrained(tmp_path)
    loaded = BlipPreTrainingConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.text_config.label_smoothing == 0.3
    assert BlipForPreTraining(loaded).temp.item() == pytest.approx(0.1)


@pytest.mark.parametrize(("field", "value"), [("queue_size", -1), ("momentum", 1.5), ("alpha", -0.1)])
def test_invalid_settings_raise(field, value):
    with pytest.raises(StrictDataclassClassValidationError, match=f"{field} is {value}"):
        tiny_pretraining_config(**{field: value})


def test_its_processor_loads_without_a_warning(tmp_path, caplog):
    tokenizer = train_wordpiece_tokenizer(["a red star"])
    processor = BlipProcessor.from_bert_tokenizer(tokenizer, image_size=32)
    BlipForPreTraining(tiny_pretraining_config()).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    # The logger of transformers does not propagate.
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        loaded = BlipProcessor.from_pretrained(tmp_path)
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.records == []
    assert loaded.config_token_ids() == processor.config_token_ids()
