# SPDX-License-Identifier: BSD-3-Clause
"""Loading of checkpoints of other classes, and configurations of transformers."""

import pytest
import torch
import transformers
from torch.testing import assert_close

from blip_hf import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForPreTraining,
    BlipTextModel,
    BlipVisionModel,
)
from blip_hf.modeling.language_modeling import BlipTextLMHeadModel
from tests.support.tiny_models import tiny_batch, tiny_config, tiny_pretraining_config


class OwnMatcher(BlipForImageTextRetrieval):
    """A matcher with a custom head."""

    def __init__(self, config):
        super().__init__(config)
        self.own_head = torch.nn.Linear(2, 2)
        self.post_init()


@pytest.fixture
def captioner():
    return BlipForConditionalGeneration(tiny_config()).eval()


@pytest.fixture
def captioner_path(captioner, tmp_path):
    captioner.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("model_class", [OwnMatcher, BlipTextModel, BlipTextLMHeadModel])
def test_checkpoint_without_required_weights_raises(captioner_path, model_class):
    with pytest.raises(ValueError, match=r"has no weights for .*Load it with BlipForConditionalGeneration"):
        model_class.from_pretrained(captioner_path)
    assert type(model_class.from_pretrained(captioner_path, allow_new_heads=True)) is model_class


def test_pretraining_checkpoint_in_another_class_raises(tmp_path):
    BlipForPreTraining(tiny_pretraining_config(queue_size=0)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no weights for some of text_encoder .*Load it with BlipForPreTraining"):
        BlipForImageTextRetrieval.from_pretrained(tmp_path)


def test_a_subclass_may_add_a_head(tmp_path):
    matcher = BlipForImageTextRetrieval(tiny_config()).eval()
    matcher.save_pretrained(tmp_path)
    batch = tiny_batch()
    assert_close(OwnMatcher.from_pretrained(tmp_path)(**batch).itm_logits, matcher(**batch).itm_logits)


def test_the_image_encoder_loads_from_a_whole_model(captioner, captioner_path, tmp_path):
    pixel_values = tiny_batch()["pixel_values"]
    expected = captioner.vision_model(pixel_values).last_hidden_state
    vision = BlipVisionModel.from_pretrained(captioner_path)
    assert_close(vision(pixel_values).last_hidden_state, expected)
    vision.save_pretrained(tmp_path / "alone")
    for loader in (BlipVisionModel, transformers.BlipVisionModel):
        assert_close(loader.from_pretrained(tmp_path / "alone")(pixel_values).last_hidden_state, expected)


def test_text_models_load_their_own_weights_and_a_decoders(captioner, tmp_path):
    captioner.text_decoder.save_pretrained(tmp_path)
    ids = tiny_batch()["input_ids"]
    decoder = BlipTextLMHeadModel.from_pretrained(tmp_path)
    assert_close(decoder(ids).logits, captioner.text_decoder(ids).logits)
    states = BlipTextModel.from_pretrained(tmp_path)(ids).last_hidden_state
    assert_close(states, captioner.text_decoder.bert(ids).last_hidden_state)


@pytest.mark.parametrize("attn_implementation", [None, "eager"])
def test_configuration_of_transformers_is_accepted(captioner, captioner_path, attn_implementation):
    config = transformers.AutoConfig.from_pretrained(captioner_path)
    assert type(config) is transformers.BlipConfig
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    loaded = BlipForConditionalGeneration.from_pretrained(captioner_path, config=config, **options)
    batch = tiny_batch()
    assert_close(loaded(**batch).logits, captioner(**batch).logits)
    assert loaded.vision_model.config._attn_implementation == (attn_implementation or "sdpa")
    for model_class, part in ((BlipVisionModel, config.vision_config), (BlipTextModel, config.text_config)):
        assert isinstance(model_class(part).config, model_class.config_class)


def test_an_exported_head_has_the_configuration_of_its_parts():
    model = BlipForPreTraining(tiny_pretraining_config())
    for head in (model.export_captioner(), model.export_retriever()):
        assert head.config.vision_config is head.vision_model.config
    captioner, retriever = model.export_captioner(), model.export_retriever()
    assert captioner.config.text_config is captioner.text_decoder.config
    assert retriever.config.text_config is retriever.text_encoder.config
    captioner.resize_position_embeddings(48)
    assert captioner.config.vision_config.image_size == 48
