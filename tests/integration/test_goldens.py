# SPDX-License-Identifier: BSD-3-Clause
"""Losses, gradients, queues and EMA equal those of salesforce/BLIP (tensors outside the repository)."""

import json

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close

from blip_hf import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForPreTraining,
    BlipForQuestionAnswering,
    BlipForRetrievalTraining,
    BlipForVisualReasoning,
    BlipPreTrainingConfig,
    BlipRetrievalTrainingConfig,
    BlipVisualReasoningConfig,
    convert_original_state_dict,
)
from tests.support.paths import GOLDENS


TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


def load_golden(name):
    path = GOLDENS / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"{path} is not here; set BLIP_HF_GOLDENS to the folder of the reference tensors")
    with safe_open(path, "pt") as file:
        sizes = {key: json.loads(value) for key, value in file.metadata().items()}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    return sizes, tensors, convert_original_state_dict(state)


def build(model_class, config_class, sizes, state, **fields):
    text_config = {
        "vocab_size": sizes["vocab_size"],
        "hidden_size": sizes["text_hidden"],
        "intermediate_size": sizes["text_intermediate"],
        "num_hidden_layers": sizes["text_layers"],
        "num_attention_heads": sizes["text_heads"],
        "max_position_embeddings": sizes["max_position_embeddings"],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "label_smoothing": sizes.get("label_smoothing", 0.0),
        "pad_token_id": sizes["pad"],
        "cls_token_id": sizes["cls"],
        "sep_token_id": sizes["sep"],
        "eos_token_id": sizes["sep"],
        "bos_token_id": sizes["bos"],
        "enc_token_id": sizes["enc"],
    }
    vision_config = {
        "hidden_size": sizes["vision_width"],
        "intermediate_size": 4 * sizes["vision_width"],
        "num_hidden_layers": sizes["vision_layers"],
        "num_attention_heads": sizes["vision_heads"],
        "image_size": sizes["image_size"],
        "patch_size": sizes["patch_size"],
    }
    config = config_class(
        text_config=text_config,
        vision_config=vision_config,
        image_text_hidden_size=sizes.get("embed_dim", 256),
        **fields,
    )
    model = model_class(config)
    model.load_state_dict(state, strict=True)
    return model.train()


@pytest.fixture
def draw_the_hardest(monkeypatch):
    """The goldens replace the random draw of negatives by the largest weight."""
    monkeypatch.setattr(torch, "multinomial", lambda weights, *_, **__: weights.argmax(dim=-1, keepdim=True))


def test_two_pretraining_steps_match_the_original(draw_the_hardest):
    sizes, golden, state = load_golden("pretrain")
    fields = {"queue_size": sizes["queue_size"], "momentum": sizes["momentum"]}
    model = build(BlipForPreTraining, BlipPreTrainingConfig, sizes, state, **fields)
    for step in ("step0.", "step1."):
        model.zero_grad()
        model.update_momentum()
        output = model(
            pixel_values=golden[step + "pixel_values"],
            input_ids=golden[step + "input_ids"],
            attention_mask=golden[step + "attention_mask"],
            alpha=golden[step + "alpha"],
        )
        output.loss.backward()
        model.enqueue(output)

        for loss in ("loss_itc", "loss_itm", "loss_lm"):
            assert_close(output[loss], golden[step + loss], **TOLERANCE)
        gradients = {name: value.grad for name, value in model.named_parameters(remove_duplicate=False)}
        expected = {
            key.removeprefix(step + "grad."): value for key, value in golden.items() if key.startswith(step + "grad.")
        }
        assert len(expected) == 9
        for name, value in convert_original_state_dict(expected).items():
            assert_close(gradients[name], value, **TOLERANCE)
        for queue in ("image_queue", "text_queue"):
            ours = getattr(model.queue, queue.replace("queue", "features"))
            assert_close(ours.T, golden[step + queue], **TOLERANCE)
        assert model.queue.pointer.item() == golden[step + "queue_ptr"].item()
        momentum_encoder = model.momentum_towers
        assert_close(momentum_encoder.text_proj.weight, golden[step + "momentum.text_proj_m.weight"], **TOLERANCE)
        positions = momentum_encoder.vision_model.embeddings.position_embedding
        assert_close(positions, golden[step + "momentum.visual_encoder_m.pos_embed"], **TOLERANCE)


@pytest.mark.parametrize("all_ranks", [False, True])
def test_a_retrieval_step_matches_the_original(all_ranks, draw_the_hardest):
    sizes, golden, state = load_golden("retrieval_allrank" if all_ranks else "retrieval")
    fields = {"queue_size": sizes["queue_size"], "momentum": sizes["momentum"], "negative_all_rank": all_ranks}
    model = build(BlipForRetrievalTraining, BlipRetrievalTrainingConfig, sizes, state, **fields)
    model.update_momentum()
    inputs = {key: golden[key] for key in ("pixel_values", "input_ids", "attention_mask", "image_ids", "alpha")}
    output = model(**inputs)
    output.loss.backward()
    model.enqueue(output)

    for loss in ("loss_itc", "loss_itm"):
        assert_close(output[loss], golden[loss], **TOLERANCE)
    gradients = {name: value.grad for name, value in model.named_parameters()}
    expected = {key.removeprefix("grad."): value for key, value in golden.items() if key.startswith("grad.")}
    assert len(expected) == 2
    for name, value in convert_original_state_dict(expected).items():
        assert_close(gradients[name], value, **TOLERANCE)
    assert torch.equal(model.queue.image_ids, golden["idx_queue"][0])


def test_captioning_loss_with_masked_prompt_matches_the_original():
    sizes, golden, state = load_golden("caption")
    model = build(BlipForConditionalGeneration, BlipConfig, sizes, state)
    labels = golden["input_ids"].masked_fill(golden["attention_mask"] == 0, -100)
    labels[:, : sizes["prompt_length"]] = -100
    output = model(
        pixel_values=golden["pixel_values"],
        input_ids=golden["input_ids"],
        attention_mask=golden["attention_mask"],
        labels=labels,
    )
    assert_close(output.loss, golden["loss"], **TOLERANCE)
    assert_close(output.image_embeds, golden["image_embeds"], **TOLERANCE)
    real = golden["attention_mask"].bool()
    assert_close(output.logits[real], golden["logits"][real], **TOLERANCE)


@pytest.mark.parametrize("start_token", ["enc", "cls"])
def test_matching_and_similarity_match_the_original(start_token):
    sizes, golden, state = load_golden("matching")
    model = build(BlipForImageTextRetrieval, BlipConfig, sizes, state, itm_start_token=start_token)
    inputs = {key: golden[key] for key in ("pixel_values", "input_ids", "attention_mask")}
    assert_close(model(**inputs).itm_logits, golden[f"itm_logits_{start_token}_token"], **TOLERANCE)
    similarity = model(**inputs, use_itm_head=False).itc_similarity
    assert_close(similarity, golden["itc_similarity"], **TOLERANCE)


def test_question_answering_loss_and_ranking_match_the_original():
    sizes, golden, state = load_golden("vqa")
    model = build(BlipForQuestionAnswering, BlipConfig, sizes, state)
    output = model(
        pixel_values=golden["pixel_values"],
        input_ids=golden["question_ids"],
        attention_mask=golden["question_mask"],
        labels=golden["answer_ids"],
        decoder_attention_mask=golden["answer_mask"],
        answer_weights=golden["answer_weights"],
        answers_per_question=golden["answers_per_question"],
    )
    assert_close(output.loss, golden["loss"], **TOLERANCE)
    ranking = model.eval().rank_answers(
        golden["pixel_values"],
        golden["question_ids"],
        golden["question_mask"],
        golden["candidate_ids"],
        golden["candidate_mask"],
        num_candidates=sizes["k_test"],
    )
    assert torch.equal(ranking.best, golden["best"])


def test_nlvr2_matches_the_original():
    sizes, golden, state = load_golden("nlvr2")
    model = build(
        BlipForVisualReasoning, BlipVisualReasoningConfig, sizes, state, merge_from_layer=sizes["merge_from_layer"]
    )
    # The original has the first images of all pairs before all second ones: (2 * b, ...) -> (b, 2, ...).
    pixel_values = golden["pixel_values"].unflatten(0, (2, -1)).transpose(0, 1)
    inputs = {key: golden[key] for key in ("input_ids", "attention_mask", "labels")}
    output = model(pixel_values, **inputs)
    assert_close(output.logits, golden["logits"], **TOLERANCE)
    assert_close(output.loss, golden["loss"], **TOLERANCE)
