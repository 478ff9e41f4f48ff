# SPDX-License-Identifier: BSD-3-Clause
"""`BlipModel`: conversion of retrieval models, zero-shot classification, errors. Parity is in `tests/integration`."""

import math

import pytest
import torch
import transformers
from torch.testing import assert_close
from transformers import pipeline

from blip_hf import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForPreTraining,
    BlipForRetrievalTraining,
    BlipModel,
)
from tests.support.images import plain_image
from tests.support.tiny_models import (
    tiny_batch,
    tiny_config,
    tiny_model_for,
    tiny_pretraining_config,
    tiny_retrieval_config,
)
from tests.support.transformers_checkpoints import load_in_transformers
from tests.support.vocabularies import make_processor


COSINE_TOLERANCE = {"atol": 1e-5, "rtol": 0.0}


@pytest.fixture
def matcher():
    """A retrieval model whose last layer norm and projections differ from their initial values in every entry."""
    model = BlipForImageTextRetrieval(tiny_config()).eval()
    with torch.no_grad():
        for parameter in (
            *model.vision_model.post_layernorm.parameters(),
            model.vision_proj.bias,
            model.text_proj.bias,
        ):
            parameter.add_(torch.randn_like(parameter))
    return model


@torch.no_grad()
def cosines(matcher, batch):
    return matcher(**batch, use_itm_head=False).itc_similarity


@torch.no_grad()
def test_a_converted_matcher_has_the_same_cosines(matcher):
    batch = tiny_batch()
    before = {name: value.clone() for name, value in matcher.state_dict().items()}
    model = BlipModel.from_matcher(matcher)
    output = model(**batch)
    assert_close(output.image_embeds @ output.text_embeds.T, cosines(matcher, batch), **COSINE_TOLERANCE)
    assert_close(output.logits_per_image, cosines(matcher, batch) / 0.07, atol=2e-4, rtol=0)
    assert not model.training
    for name, value in matcher.state_dict().items():
        assert_close(value, before[name], atol=0, rtol=0, msg=name)


@torch.no_grad()
def test_a_converted_matcher_reads_images_as_before(matcher):
    batch = tiny_batch()
    model = BlipModel.from_matcher(matcher)
    expected = matcher(**batch, itm_start_token="cls").question_embeds
    states = model.vision_model(batch["pixel_values"]).last_hidden_state
    text = model.text_model(batch["input_ids"], batch["attention_mask"], encoder_hidden_states=states)
    assert_close(text.last_hidden_state, expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [None, 0.2])
def test_the_temperature_becomes_the_logit_scale(matcher, temperature):
    pretrained = BlipForPreTraining(tiny_pretraining_config()).eval()
    pretrained.temp.fill_(0.03)
    for source, learnt in ((matcher, 0.07), (pretrained, 0.03)):
        model = BlipModel.from_matcher(source, temperature)
        assert math.isclose(model.logit_scale.exp().item(), 1 / (temperature or learnt), rel_tol=1e-5)
    with pytest.raises(ValueError, match="temperature is 0, expected a positive number"):
        BlipModel.from_matcher(matcher, 0)


@torch.no_grad()
@pytest.mark.parametrize("saved", ["matcher", "retrieval training"])
def test_checkpoints_convert_and_open_in_transformers(matcher, saved, tmp_path):
    batch = tiny_batch()
    if saved == "retrieval training":
        trained = BlipForRetrievalTraining(tiny_retrieval_config()).eval()
        trained.temp.fill_(0.02)
        matcher = trained.export_retriever()
        trained.save_pretrained(tmp_path / "matcher")
    else:
        matcher.save_pretrained(tmp_path / "matcher")
    BlipModel.from_matcher_pretrained(tmp_path / "matcher").save_pretrained(tmp_path / "dual_encoder")
    theirs = load_in_transformers("BlipModel", tmp_path / "dual_encoder").eval()
    output = theirs(**batch)
    assert_close(output.image_embeds @ output.text_embeds.T, cosines(matcher, batch), **COSINE_TOLERANCE)
    ours = BlipModel.from_pretrained(tmp_path / "dual_encoder")
    assert_close(ours(**batch).logits_per_text, output.logits_per_text, atol=5e-4, rtol=0)  # up to 50
    assert math.isclose(theirs.logit_scale.item(), -math.log(0.02 if saved != "matcher" else 0.07), rel_tol=1e-5)


def test_features_wider_than_the_text_are_refused():
    config = tiny_config()
    config.image_text_hidden_size = 17
    with pytest.raises(ValueError, match="image_text_hidden_size is 17, more than the text's hidden_size of 16"):
        BlipModel.from_matcher(BlipForImageTextRetrieval(config))


def test_a_checkpoint_of_another_class_is_refused(matcher, tmp_path):
    matcher.save_pretrained(tmp_path / "matcher")
    with pytest.raises(ValueError, match=r"no weights for .*text_model.*BlipModel\.from_matcher_pretrained"):
        BlipModel.from_pretrained(tmp_path / "matcher")
    BlipForConditionalGeneration(tiny_config()).save_pretrained(tmp_path / "captioner")
    with pytest.raises(ValueError, match=r"no weights for .*Load it with BlipForConditionalGeneration"):
        BlipModel.from_matcher_pretrained(tmp_path / "captioner")
    with pytest.raises(TypeError, match=r"matcher is a .*BlipForConditionalGeneration, expected a BlipForImageText"):
        BlipModel.from_matcher(BlipForConditionalGeneration(tiny_config()))


def test_the_loss_needs_pairs():
    model, batch = BlipModel(tiny_config()), tiny_batch()
    with pytest.raises(ValueError, match="got 3 texts and 2 images, expected one text for each image"):
        model(batch["input_ids"], batch["pixel_values"][:2], return_loss=True)


def test_the_logit_scale_is_initialised_where_a_checkpoint_lacks_it(tmp_path):
    BlipForImageTextRetrieval(tiny_config()).save_pretrained(tmp_path)
    model = BlipModel.from_pretrained(tmp_path, allow_new_heads=True)
    assert_close(model.logit_scale.item(), model.config.logit_scale_init_value, atol=1e-6, rtol=0)


def test_token_types_of_zeros_are_taken_and_others_refused():
    model, batch = BlipModel(tiny_config()).eval(), tiny_batch()
    expected = model(**batch)
    zeros, ones = torch.zeros_like(batch["input_ids"]), torch.ones_like(batch["input_ids"])
    assert_close(model(**batch, token_type_ids=zeros).logits_per_text, expected.logits_per_text)
    features = model.get_text_features(batch["input_ids"], batch["attention_mask"], token_type_ids=zeros)
    assert_close(torch.nn.functional.normalize(features.pooler_output, dim=-1), expected.text_embeds)
    with pytest.raises(ValueError, match="token_type_ids has values other than 0"):
        model(**batch, token_type_ids=ones)


def test_multimodal_features_read_the_image_from_enc():
    batch = tiny_batch()
    model = BlipModel(tiny_config()).eval()
    features = model.get_multimodal_features(**batch)
    assert features.shape == (3, 512)
    assert_close(model.get_multimodal_features(**batch | {"input_ids": batch["input_ids"].clone()}), features)
    model.config.itm_start_token = "cls"
    assert not torch.allclose(model.get_multimodal_features(**batch), features, atol=1e-3)
    one_text = model.get_multimodal_features(batch["input_ids"][:1], batch["pixel_values"])
    assert_close(one_text[1:2], model.get_multimodal_features(batch["input_ids"][:1], batch["pixel_values"][1:2]))


def classify(classifier):
    return classifier(plain_image("red"), candidate_labels=["a", "b c"], hypothesis_template="{}")


def test_zero_shot_classification_pipeline(tmp_path):
    processor = make_processor(image_size=32)
    matcher = tiny_model_for(BlipForImageTextRetrieval, processor, initializer_range=0.5)
    model = BlipModel.from_matcher(matcher)
    ours = classify(
        pipeline(
            "zero-shot-image-classification",
            model=model,
            tokenizer=processor.tokenizer,
            image_processor=processor.image_processor,
        )
    )
    inputs = processor(plain_image("red"), ["a", "b c"], padding=True, return_tensors="pt")
    expected = (cosines(matcher, inputs) / 0.07).softmax(dim=-1)[0]
    scores = {result["label"]: result["score"] for result in ours}
    assert_close(torch.tensor([scores["a"], scores["b c"]]), expected, atol=1e-4, rtol=0)

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    theirs = classify(pipeline("zero-shot-image-classification", model=str(tmp_path)))
    assert isinstance(transformers.AutoModel.from_pretrained(tmp_path), transformers.BlipModel)
    for result in theirs:
        assert math.isclose(result["score"], scores[result["label"]], abs_tol=1e-4)
