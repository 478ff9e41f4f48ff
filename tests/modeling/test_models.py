# SPDX-License-Identifier: BSD-3-Clause
"""Encoders and heads: backends, grouping, padding, sizes, dtypes, export."""

from operator import attrgetter

import pytest
import torch
import transformers
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments
from transformers.utils.generic import find_labels

from blip_hf import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForPreTraining,
    BlipForQuestionAnswering,
    BlipForRetrievalTraining,
    BlipForVisualReasoning,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
)
from blip_hf.modeling.language_modeling import BlipTextLMHeadModel
from tests.support.tiny_models import (
    CLS,
    DEC,
    PAD,
    VISION,
    tiny_batch,
    tiny_config,
    tiny_nlvr2_config,
    tiny_pretraining_config,
    tiny_retrieval_config,
)


@pytest.fixture
def captioner():
    return BlipForConditionalGeneration(tiny_config()).eval()


@pytest.fixture
def matcher():
    return BlipForImageTextRetrieval(tiny_config()).eval()


def test_attentions_are_returned_with_sdpa(captioner):
    assert captioner.config._attn_implementation == "sdpa"
    batch = tiny_batch()
    output = captioner(**batch, output_attentions=True, output_hidden_states=True)
    assert [a.shape for a in output.attentions] == [(3, 2, 5, 5)] * 2
    assert [a.shape for a in output.decoder_attentions] == [(3, 2, 7, 7)] * 2
    assert [a.shape for a in output.cross_attentions] == [(3, 2, 7, 5)] * 2
    assert len(output.hidden_states) == len(output.decoder_hidden_states) == 3
    for attention in output.cross_attentions:
        assert_close(attention.sum(-1), torch.ones(3, 2, 7))
    assert_close(output.logits, captioner(**batch).logits)


@pytest.mark.parametrize(
    "build",
    [
        lambda: BlipForConditionalGeneration(tiny_config()),
        lambda: BlipForImageTextRetrieval(tiny_config()),
        lambda: BlipForQuestionAnswering(tiny_config()),
        lambda: BlipForPreTraining(tiny_pretraining_config()),
        lambda: BlipForRetrievalTraining(tiny_retrieval_config()),
        lambda: BlipForVisualReasoning(tiny_nlvr2_config()),
        lambda: BlipVisionModel(BlipVisionConfig(**VISION)),
    ],
)
def test_attention_is_switched_in_all_parts(build):
    model = build()
    model.set_attn_implementation("eager")
    configs = {module.config._attn_implementation for module in model.modules() if hasattr(module, "config")}
    assert configs == {"eager"}
    assert {config._attn_implementation for config in (model.config, *sub_configs(model.config))} == {"eager"}


def sub_configs(config):
    return [getattr(config, name) for name in config.sub_configs]


def test_grouped_cross_attentions_belong_to_their_rows(matcher):
    batch = tiny_batch(lengths=(6, 6, 6, 6))
    grouped = matcher(batch["input_ids"], batch["pixel_values"][:2], output_attentions=True)
    repeated = matcher(batch["input_ids"], batch["pixel_values"][:2].repeat_interleave(2, 0), output_attentions=True)
    for ours, expected in zip(grouped.cross_attentions, repeated.cross_attentions, strict=True):
        assert_close(ours, expected)


@pytest.mark.parametrize("rows_an_image", [1, 2, 4])
def test_texts_grouped_by_image_equal_repeated_images(matcher, rows_an_image):
    batch = tiny_batch(lengths=(7, 5, 6, 4, 7, 3, 5, 6))
    images = batch["pixel_values"][: 8 // rows_an_image]
    text = {key: batch[key] for key in ("input_ids", "attention_mask")}
    grouped = matcher(pixel_values=images, **text).itm_logits
    repeated = matcher(pixel_values=images.repeat_interleave(rows_an_image, 0), **text).itm_logits
    assert_close(grouped, repeated)


def test_one_image_against_many_texts_is_encoded_once(matcher):
    batch = tiny_batch(lengths=(7, 5, 6, 4))
    memory = matcher.get_image_memory(batch["pixel_values"][:1])
    assert memory.num_images == 1
    logits = matcher.get_itm_logits(memory, batch["input_ids"], batch["attention_mask"])
    for row in range(4):
        alone = matcher(
            batch["input_ids"][row : row + 1],
            batch["pixel_values"][:1],
            attention_mask=batch["attention_mask"][row : row + 1],
        )
        assert_close(logits[row : row + 1], alone.itm_logits)


def test_rows_may_select_other_images(matcher):
    batch = tiny_batch(lengths=(7, 5, 6))
    text = {key: batch[key] for key in ("input_ids", "attention_mask")}
    memory = matcher.get_image_memory(batch["pixel_values"])
    picks = torch.tensor([2, 0, 0])
    expected = matcher(pixel_values=batch["pixel_values"][picks], **text).itm_logits
    assert_close(matcher.get_itm_logits(memory, **text, image_index=picks), expected)
    assert_close(matcher.get_itm_logits(memory.select(picks), **text), expected)


def repeated(batch):
    """Three images with the first text: once, and once per image."""
    once = {key: batch[key][:1, :6] for key in ("input_ids", "attention_mask")}
    return batch["pixel_values"], once, {key: value.repeat(3, 1) for key, value in once.items()}


def test_one_text_is_matched_with_each_image(matcher, captioner):
    pixel_values, once, thrice = repeated(tiny_batch(lengths=(5, 7, 7)))
    assert_close(
        matcher(pixel_values=pixel_values, **once).itm_logits, matcher(pixel_values=pixel_values, **thrice)[0]
    )
    memory = matcher.get_image_memory(pixel_values)
    assert_close(matcher.get_itm_logits(memory, **once), matcher.get_itm_logits(memory, **thrice))
    labels = {"labels": once["input_ids"]}, {"labels": thrice["input_ids"]}
    single, several = captioner(pixel_values, **once, **labels[0]), captioner(pixel_values, **thrice, **labels[1])
    assert_close((single.loss, single.logits), (several.loss, several.logits))
    settings = {"num_beams": 2, "max_new_tokens": 4}
    assert_close(
        captioner.generate(pixel_values, **once, **settings), captioner.generate(pixel_values, **thrice, **settings)
    )


def test_one_question_is_asked_about_each_image():
    model = BlipForQuestionAnswering(tiny_config()).eval()
    pixel_values, once, thrice = repeated(tiny_batch(lengths=(5, 7, 7)))
    answers = {"labels": tiny_batch(first=DEC, seed=1)["input_ids"]}
    assert_close(
        model(pixel_values=pixel_values, **once, **answers).loss,
        model(pixel_values=pixel_values, **thrice, **answers).loss,
    )
    expected = model.generate(pixel_values=pixel_values, **thrice, max_new_tokens=4)
    assert_close(model.generate(pixel_values=pixel_values, **once, max_new_tokens=4), expected)


def test_texts_not_divisible_among_images_raise(matcher):
    batch = tiny_batch(lengths=(7, 5, 6))
    with pytest.raises(ValueError, match=r"3 text rows do not divide among 2 images.*or one text for all images"):
        matcher(batch["input_ids"], batch["pixel_values"][:2])


def test_padding_does_not_change_matching(matcher):
    batch = tiny_batch(lengths=(7, 4, 5))
    wider = torch.nn.functional.pad(batch["input_ids"], (0, 6), value=PAD)
    for use_itm_head in (True, False):
        expected = matcher(**batch, use_itm_head=use_itm_head)[0]
        actual = matcher(wider, batch["pixel_values"], use_itm_head, attention_mask=(wider != PAD).long())[0]
        assert_close(actual, expected)


def test_cross_attention_mask_hides_padding():
    model = BlipTextModel(tiny_config().text_config).eval()
    states = torch.randn(2, 6, 24)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]])
    ids = tiny_batch(lengths=(5, 5))["input_ids"]
    masked = model(ids, encoder_hidden_states=states, encoder_attention_mask=mask).last_hidden_state
    assert_close(masked, model(ids, encoder_hidden_states=states[:, :4]).last_hidden_state)
    assert not torch.allclose(masked, model(ids, encoder_hidden_states=states).last_hidden_state, atol=1e-3)


def test_features_are_unit_vectors_and_give_the_similarity_matrix(matcher):
    batch = tiny_batch(lengths=(7, 5, 6))
    images = matcher.get_image_features(batch["pixel_values"][:2]).pooler_output
    texts = matcher.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
    assert_close(images.norm(dim=-1), torch.ones(2))
    assert_close(texts.norm(dim=-1), torch.ones(3))
    similarity = matcher(
        batch["input_ids"], batch["pixel_values"][:2], use_itm_head=False, attention_mask=batch["attention_mask"]
    ).itc_similarity
    assert_close(similarity, images @ texts.T)


def test_labels_of_pairs_give_the_matching_loss(matcher):
    batch, labels = tiny_batch(), torch.tensor([1, 0, 1])
    output = matcher(**batch, labels=labels)
    probabilities = output.itm_logits.softmax(-1)
    assert_close(output.loss, -probabilities[torch.arange(3), labels].log().mean())
    with pytest.raises(ValueError, match="labels require the matching head"):
        matcher(**batch, labels=labels, use_itm_head=False)


def test_unknown_arguments_raise(captioner, matcher):
    batch = tiny_batch()
    with pytest.raises(TypeError, match="decoder_input_ids"):
        captioner(**batch, decoder_input_ids=batch["input_ids"])
    with pytest.raises(TypeError, match="token_type_id"):
        matcher(**batch, token_type_id=batch["input_ids"])


def test_cls_is_read_as_dec_and_padding_never_counts_in_training(captioner):
    batch = tiny_batch(first=CLS)
    proper = batch | {"input_ids": batch["input_ids"].clone()}
    proper["input_ids"][:, 0] = DEC
    masked = batch["input_ids"].masked_fill(batch["input_ids"] == PAD, -100)
    expected = captioner(**proper, labels=masked).loss
    assert_close(captioner(**batch, labels=batch["input_ids"]).loss, expected)


@pytest.mark.parametrize("lengths", [(6, 6, 6, 6), (7, 3, 5, 4)])
def test_num_items_makes_accumulated_losses_equal_the_whole_batch(captioner, lengths):
    batch = tiny_batch(lengths=lengths, first=DEC)
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    num_items = batch["labels"][:, 1:].ne(-100).sum()
    parts = [
        captioner(**{key: value[row : row + 1] for key, value in batch.items()}, num_items_in_batch=num_items).loss
        for row in range(4)
    ]
    assert_close(sum(parts), captioner(**batch).loss)


def test_shift_labels_are_not_shifted_again(captioner):
    batch = tiny_batch(first=DEC)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    assert_close(captioner(**batch, labels=labels, shift_labels=shifted).loss, captioner(**batch, labels=labels).loss)


@pytest.mark.parametrize(
    "model_class",
    [
        BlipForConditionalGeneration,
        BlipForImageTextRetrieval,
        BlipForQuestionAnswering,
        BlipForVisualReasoning,
        BlipTextLMHeadModel,
    ],
)
def test_labels_are_the_only_label_names(model_class):
    assert find_labels(model_class) == ["labels"]


def test_a_plain_trainer_reports_the_loss_and_metrics_of_an_evaluation(captioner, tmp_path):
    batch = tiny_batch(lengths=(6, 6), first=DEC)
    batch["labels"] = batch["input_ids"]
    records = [{name: value[row] for name, value in batch.items()} for row in range(2)]
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = Trainer(
        captioner,
        arguments,
        eval_dataset=records,
        compute_metrics=lambda prediction: {"rows": len(prediction.label_ids)},
    )
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(captioner(**batch).loss.item(), rel=1e-5)
    assert metrics["eval_rows"] == 2


def test_label_smoothing_reaches_the_decoder_from_the_top_level():
    batch = tiny_batch(first=DEC)
    losses = []
    for smoothing in (0.0, 0.1):
        torch.manual_seed(0)
        model = BlipForConditionalGeneration(tiny_config(label_smoothing=smoothing)).eval()
        losses.append(model(**batch, labels=batch["input_ids"]))
    plain, smoothed = losses
    log_probabilities = plain.logits[:, :-1].log_softmax(-1)
    real = batch["attention_mask"][:, 1:].bool()
    uniform = -log_probabilities.mean(-1)[real].mean()
    assert_close(smoothed.loss, 0.9 * plain.loss + 0.1 * uniform)


def test_image_of_another_size_raises_or_is_interpolated():
    model = BlipVisionModel(BlipVisionConfig(**VISION)).eval()
    larger = torch.randn(1, 3, 48, 64)
    with pytest.raises(ValueError, match=r"48 x 64 pixels, the model expects 32 x 32.*interpolate_pos_encoding"):
        model(larger)
    assert model(larger, interpolate_pos_encoding=True).last_hidden_state.shape == (1, 3 * 4 + 1, 24)


def test_resized_positions_equal_interpolation_and_are_saved(tmp_path):
    model = BlipVisionModel(BlipVisionConfig(**VISION)).eval()
    larger = torch.randn(1, 3, 64, 64)
    expected = model(larger, interpolate_pos_encoding=True).last_hidden_state
    model.resize_position_embeddings(64)
    assert_close(model(larger).last_hidden_state, expected)
    model.save_pretrained(tmp_path)
    assert_close(BlipVisionModel.from_pretrained(tmp_path)(larger).last_hidden_state, expected)
    with pytest.raises(ValueError, match="multiple of the patch size"):
        model.resize_position_embeddings(50)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_does_not_change_outputs_or_gradients(captioner, reentrant):
    batch = tiny_batch(first=DEC)
    captioner.train()
    captioner(**batch, labels=batch["input_ids"]).loss.backward()
    expected = {name: value.grad.clone() for name, value in captioner.named_parameters()}
    captioner.zero_grad()
    captioner.activation_checkpointing_enable({"use_reentrant": reentrant})
    captioner.enable_input_require_grads()
    captioner(**batch, labels=batch["input_ids"]).loss.backward()
    for name, value in captioner.named_parameters():
        assert_close(value.grad, expected[name], msg=name)


def test_drop_path_grows_with_depth_and_is_off_in_evaluation():
    config = BlipVisionConfig(**VISION | {"num_hidden_layers": 3, "drop_path_rate": 0.5})
    model = BlipVisionModel(config)
    assert [layer.drop_path for layer in model.encoder.layers] == pytest.approx([0.0, 0.25, 0.5])
    pixels = torch.randn(4, 3, 32, 32)
    model.eval()
    assert_close(model(pixels).last_hidden_state, model(pixels).last_hidden_state)
    model.train()
    assert not torch.allclose(model(pixels).last_hidden_state, model(pixels).last_hidden_state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_fp32(matcher, dtype):
    batch = tiny_batch()
    expected = matcher(**batch, use_itm_head=False).itc_similarity
    actual = matcher.to(dtype)(**batch, use_itm_head=False).itc_similarity
    assert_close(actual, expected, atol=0.1, rtol=0.1)


def test_both_encoders_export(matcher):
    batch = tiny_batch()
    vision = torch.export.export(matcher.vision_model, (batch["pixel_values"],)).module()
    image_embeds = matcher.vision_model(batch["pixel_values"]).last_hidden_state
    assert_close(vision(batch["pixel_values"])["last_hidden_state"], image_embeds)

    inputs = {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "encoder_hidden_states": image_embeds.detach(),
    }
    text = torch.export.export(matcher.text_encoder, (), inputs).module()
    expected = matcher.text_encoder(**inputs).last_hidden_state
    assert_close(text(**inputs)["last_hidden_state"], expected)


def test_both_encoders_compile_without_graph_breaks(matcher):
    batch = tiny_batch()
    vision = torch.compile(matcher.vision_model, fullgraph=True, backend="aot_eager")
    image_embeds = matcher.vision_model(batch["pixel_values"]).last_hidden_state
    assert_close(vision(batch["pixel_values"]).last_hidden_state, image_embeds)
    text = torch.compile(matcher.text_encoder, fullgraph=True, backend="aot_eager")
    expected = matcher.text_encoder(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    assert_close(text(batch["input_ids"], batch["attention_mask"]).last_hidden_state, expected)


def test_attributes_of_transformers_have_its_values():
    config = tiny_config()
    ours = {"captioner": BlipForConditionalGeneration(config), "vqa": BlipForQuestionAnswering(config)}
    twin_config = transformers.BlipConfig.from_dict(config.to_dict())
    theirs = {
        "captioner": transformers.BlipForConditionalGeneration(twin_config),
        "vqa": transformers.BlipForQuestionAnswering(twin_config),
    }
    for name in ours:
        for path in (
            *(["decoder_input_ids"] if name == "captioner" else ["decoder_start_token_id"]),
            *("decoder_pad_token_id", "text_decoder.label_smoothing"),
            *("vision_model.embeddings.num_patches", "vision_model.embeddings.num_positions"),
        ):
            assert attrgetter(path)(ours[name]) == attrgetter(path)(theirs[name]), path
    embeddings, twin = (models["vqa"].vision_model.embeddings for models in (ours, theirs))
    twin.load_state_dict(embeddings.state_dict())
    states = torch.zeros(1, 7, VISION["hidden_size"])
    expected = twin.interpolate_pos_encoding(states, 48, 32)
    assert_close(embeddings.interpolate_pos_encoding(states, 48, 32), expected)


def test_attributes_follow_the_model(captioner):
    captioner.resize_position_embeddings(64)
    assert captioner.vision_model.embeddings.num_patches == 16
    batch = tiny_batch()
    losses = []
    for smoothing in (0.0, 0.2):
        captioner.text_decoder.label_smoothing = smoothing
        losses.append(captioner(**batch, labels=batch["input_ids"], interpolate_pos_encoding=True).loss)
    assert losses[0] != losses[1]
    assert captioner.text_decoder.config.label_smoothing == 0.2


def test_skip_last_needs_token_ids(captioner):
    decoder = captioner.text_decoder
    labels = torch.tensor([[DEC, 3, 4]])
    words = decoder.get_input_embeddings()(labels)
    memory = captioner.get_image_memory(tiny_batch()["pixel_values"][:1])
    with pytest.raises(ValueError, match="skip_last needs input_ids"):
        decoder(inputs_embeds=words, labels=labels, image_memory=memory, skip_last=True)
