# SPDX-License-Identifier: BSD-3-Clause
"""The models of the tasks on CUDA: the CPU's numbers, steps that never wait, half precision, the flash kernel."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from blip_hf import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForPreTraining,
    BlipForQuestionAnswering,
    BlipForRetrievalTraining,
    BlipForVisualReasoning,
)
from blip_hf.modeling import contrastive
from blip_hf.objectives import sample_hard_negatives
from tests.integration.test_gpu import TOLERANCE, assert_never_waits, assert_same_gradients, on_cuda
from tests.support.twins import (
    tiny_batch,
    tiny_config,
    tiny_pretraining_config,
    tiny_reasoning_config,
    tiny_retrieval_config,
)


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.usefixtures("_without_tf32"),
]
IMAGE_IDS = torch.tensor([1, 1, 2])


def reasoning_batch():
    batch = tiny_batch()
    pairs = torch.stack([batch["pixel_values"], batch["pixel_values"].flip(0)], dim=1)
    return batch | {"pixel_values": pairs, "labels": torch.tensor([1, 0, 1])}


def answer_batch():
    return tiny_batch() | {"labels": tiny_batch((4, 3, 5), seed=3)["input_ids"]}


def weighted_answer_batch():
    return tiny_batch() | {
        "labels": tiny_batch((4, 3, 5, 4), seed=3)["input_ids"],
        "answer_weights": torch.tensor([0.3, 0.7, 1.0, 1.0]),
        "answers_per_question": torch.tensor([2, 1, 1]),
    }


def pair_batch():
    return tiny_batch() | {"image_ids": IMAGE_IDS}


TRAINED = {
    "answerer": (BlipForQuestionAnswering, tiny_config, answer_batch),
    "reasoner": (BlipForVisualReasoning, tiny_reasoning_config, reasoning_batch),
    "retrieval": (BlipForRetrievalTraining, tiny_retrieval_config, pair_batch),
}
ALL_KINDS = TRAINED | {"pretraining": (BlipForPreTraining, tiny_pretraining_config, pair_batch)}


def make(kind):
    """A model in training mode and its batch, on the CPU."""
    model_class, make_config, make_batch = ALL_KINDS[kind]
    return model_class(make_config()).train(), make_batch()


def assert_same_step(model, batch):
    """Loss and gradients on CUDA are those of the CPU; returns both outputs."""
    expected = model(**batch)
    expected.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()

    output = model.cuda()(**on_cuda(batch))
    output.loss.backward()
    assert_close(output.loss.cpu(), expected.loss, **TOLERANCE)
    assert_same_gradients(model, gradients)
    return expected, output


# The numbers of the CPU


@pytest.mark.parametrize("make_batch", [answer_batch, weighted_answer_batch])
def test_answerer_equals_the_cpu(make_batch):
    model = BlipForQuestionAnswering(tiny_config())  # in evaluation mode all positions have logits
    expected, output = assert_same_step(model.eval(), make_batch())
    assert_close(output.logits.cpu(), expected.logits, **TOLERANCE)
    assert_close(output.answer_losses.cpu(), expected.answer_losses, **TOLERANCE)


def test_answerer_writes_what_the_cpu_writes():
    model, batch = BlipForQuestionAnswering(tiny_config()).eval(), tiny_batch()
    expected = model.generate(**batch, max_new_tokens=6, num_beams=3)
    generated = model.cuda().generate(**on_cuda(batch), max_new_tokens=6, num_beams=3)
    assert torch.equal(generated.cpu(), expected)


def test_answerer_ranks_as_the_cpu_ranks():
    model, batch = BlipForQuestionAnswering(tiny_config()).eval(), tiny_batch()
    answers = tiny_batch((4, 6, 3, 5), seed=3)["input_ids"]
    expected = model.rank_answers(**batch, answer_ids=answers, num_candidates=3)
    ranking = model.cuda().rank_answers(**on_cuda(batch), answer_ids=answers.cuda(), num_candidates=3)
    assert torch.equal(ranking.best.cpu(), expected.best)
    assert torch.equal(ranking.candidates.cpu(), expected.candidates)
    assert_close(ranking.scores.cpu(), expected.scores, **TOLERANCE)


def test_reasoner_equals_the_cpu():
    model, batch = make("reasoner")
    expected, output = assert_same_step(model, batch)
    assert_close(output.logits.cpu(), expected.logits, **TOLERANCE)


def test_retrieval_step_equals_the_cpu(monkeypatch):
    def hardest(logits, positives, generator=None):  # the devices draw different random numbers
        _, has_negative = sample_hard_negatives(logits, positives, generator)
        return logits.masked_fill(positives, float("-inf")).argmax(dim=-1), has_negative

    monkeypatch.setattr(contrastive, "sample_hard_negatives", hardest)
    model, batch = make("retrieval")
    expected, output = assert_same_step(model, batch)
    for name in ("loss_itc", "loss_itm", "itm_logits", "image_features", "momentum_text_features"):
        assert_close(output[name].cpu(), expected[name], **TOLERANCE)
    model.enqueue(output)
    assert_close(model.queue.text_features[:3].cpu(), expected.momentum_text_features, **TOLERANCE)
    assert torch.equal(model.queue.image_ids[:3].cpu(), IMAGE_IDS)


# Training steps


@pytest.mark.parametrize("kind", list(TRAINED))
def test_bf16_autocast_step_is_finite(kind):
    model, batch = make(kind)
    model.cuda()
    optimiser = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        output = model(**on_cuda(batch))
    assert output.loss.dtype == torch.float32
    assert output.loss.isfinite()
    output.loss.backward()
    optimiser.step()
    if kind == "retrieval":
        model.update_momentum()
        model.enqueue(output)
        assert output.image_features.dtype == model.queue.image_features.dtype == torch.float32
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", list(TRAINED))
def test_training_step_never_waits_for_the_device(kind, autocast):
    model, batch = make(kind)
    model.cuda()
    batch = on_cuda(batch)

    def step():
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
            output = model(**batch)
        output.loss.backward()
        if kind == "retrieval":
            model.update_momentum()
            model.enqueue(output)

    assert_never_waits(step)


# Half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", list(ALL_KINDS))
def test_half_precision_weights_give_a_finite_loss_near_that_of_fp32(kind, dtype, monkeypatch):
    def hardest(logits, positives, generator=None):
        return logits.masked_fill(positives, float("-inf")).argmax(dim=-1), ~positives.all(dim=-1)

    monkeypatch.setattr(contrastive, "sample_hard_negatives", hardest)
    model, batch = make(kind)
    with torch.no_grad():
        expected = model(**batch).loss
        output = model.to("cuda", dtype)(**on_cuda(batch))
    assert output.loss.dtype == torch.float32
    assert output.loss.isfinite()
    # A similarity that is off by 1 % of 1 moves a logit by 0.14 at a temperature of 0.07, and weights here are wide.
    assert_close(output.loss.cpu(), expected, atol=0.3, rtol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_write_and_rank(dtype):
    model, batch = BlipForQuestionAnswering(tiny_config()).eval().to("cuda", dtype), on_cuda(tiny_batch())
    answers = tiny_batch((4, 6, 3), seed=3)["input_ids"].cuda()
    assert len(model.generate(**batch, max_new_tokens=4, num_beams=2)) == 3
    scores = model.rank_answers(**batch, answer_ids=answers).scores
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()


# Attention


@pytest.mark.parametrize("kind", list(ALL_KINDS))
def test_sdpa_equals_eager(kind):
    model, batch = make(kind)
    model.eval().cuda()
    losses = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        torch.manual_seed(0)  # of the hard negatives
        losses.append(model(**on_cuda(batch)).loss)
    assert_close(*losses, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_images_and_texts_without_padding_run_on_the_flash_kernel(dtype):
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("the flash kernel needs compute capability 8.0")
    config = tiny_config()
    config.vision_config.hidden_size, config.text_config.hidden_size = 32, 32  # 16 a head: no padding of heads
    config.text_config.encoder_hidden_size = 32
    matcher = BlipForImageTextRetrieval(config).eval().to("cuda", dtype)
    captioner = BlipForConditionalGeneration(config).eval().to("cuda", dtype)
    pixel_values, input_ids = tiny_batch((6, 6, 6))["pixel_values"].cuda(), tiny_batch((6, 6, 6))["input_ids"].cuda()

    def run():
        memory = matcher.get_image_memory(pixel_values[:1])  # which all three texts read
        return matcher.get_itm_logits(memory, input_ids), captioner.get_image_memory(pixel_values).keys[0]

    with torch.no_grad():
        for model in (matcher, captioner):
            model.set_attn_implementation("eager")
        expected = run()
        for model in (matcher, captioner):
            model.set_attn_implementation("sdpa")
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where it has to be another
            flash = run()
    # Eight bits of precision, of values up to about 10.
    assert_close(flash, expected, atol=0.15, rtol=0.05)
