# SPDX-License-Identifier: BSD-3-Clause
"""Encoders initialised from ViT, DeiT and BERT checkpoints reproduce their outputs."""

import pytest
import torch
from torch.testing import assert_close
from transformers import BertConfig, BertModel, DeiTConfig, DeiTModel, ViTConfig, ViTModel

from blip_hf import BlipForPreTraining, BlipVisionConfig, BlipVisionModel
from tests.support.tiny_models import VISION


SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT_VOCAB = 30


@pytest.fixture
def bert(tmp_path):
    model = BertModel(BertConfig(vocab_size=BERT_VOCAB, initializer_range=0.3, **SIZES)).eval()
    model.save_pretrained(tmp_path / "bert")
    return model


def vision_source(kind):
    sizes = {"image_size": 32, "patch_size": 16, "initializer_range": 0.3}
    if kind == "vit":
        return ViTModel(ViTConfig(**SIZES, **sizes)).eval()
    if kind == "deit":
        return DeiTModel(DeiTConfig(**SIZES, **sizes)).eval()
    return BlipVisionModel(BlipVisionConfig(**VISION)).eval()


def start(tmp_path, source, **fields):
    source.save_pretrained(tmp_path / "vision")
    return BlipForPreTraining.from_vision_text_pretrained(
        tmp_path / "vision", tmp_path / "bert", queue_size=8, image_text_hidden_size=8, **fields
    ).eval()


@pytest.mark.parametrize("kind", ["vit", "blip"])
def test_image_encoder_gives_the_hidden_states_of_vit(kind, tmp_path, bert):
    source = vision_source(kind)
    model = start(tmp_path, source)
    pixels = torch.randn(2, 3, 32, 32)
    expected = source(pixels).last_hidden_state
    assert_close(model.vision_model(pixels).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    assert_close(model.momentum_towers.vision_model(pixels).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


def test_only_the_distillation_token_of_deit_is_dropped(tmp_path, bert):
    source = vision_source("deit")
    model = start(tmp_path, source)
    pixels = torch.randn(2, 3, 32, 32)
    embedded = source.embeddings(pixels)
    expected = torch.cat([embedded[:, :1], embedded[:, 2:]], dim=1)
    assert_close(model.vision_model.embeddings(pixels), expected, atol=1e-5, rtol=1e-5)


def test_text_encoder_gives_the_hidden_states_of_bert(tmp_path, bert):
    model = start(tmp_path, vision_source("vit"))
    ids = torch.randint(0, BERT_VOCAB, (2, 6))
    expected = bert(ids).last_hidden_state
    assert_close(model.text_encoder(ids).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    decoder = model.text_decoder.bert(ids, is_decoder=False).last_hidden_state
    assert_close(decoder, expected, atol=1e-5, rtol=1e-5)
    assert model.config.text_config.vocab_size == BERT_VOCAB + 2
    assert (model.config.text_config.bos_token_id, model.config.text_config.enc_token_id) == (30, 31)
    added = model.get_input_embeddings().weight[BERT_VOCAB:]
    assert 0.005 < added.std() < 0.05


def test_image_size_resizes_both_image_encoders(tmp_path, bert):
    model = start(tmp_path, vision_source("vit"), image_size=48)
    assert model.config.vision_config.image_size == 48
    batch = {"pixel_values": torch.randn(2, 3, 48, 48), "input_ids": torch.randint(1, BERT_VOCAB, (2, 6))}
    assert torch.isfinite(model(**batch).loss)


def test_either_encoder_may_start_from_random_weights(tmp_path, bert):
    model = BlipForPreTraining.from_vision_text_pretrained(
        text=tmp_path / "bert", vision_fields=VISION, text_fields={"hidden_dropout_prob": 0.0}, queue_size=8
    )
    ids = torch.randint(0, BERT_VOCAB, (2, 6))
    assert_close(model.eval().text_encoder(ids).last_hidden_state, bert(ids).last_hidden_state, atol=1e-5, rtol=1e-5)
    assert model.config.vision_config.hidden_size == VISION["hidden_size"]
    assert model.config.text_config.hidden_dropout_prob == 0


def test_another_model_type_raises(tmp_path, bert):
    with pytest.raises(ValueError, match="type 'bert', expected one of vit, deit"):
        BlipForPreTraining.from_vision_text_pretrained(tmp_path / "bert", tmp_path / "bert")
