# SPDX-License-Identifier: BSD-3-Clause
"""CUDA gives the CPU's numbers, in a training step that never waits for the device."""

import pytest
import torch
from torch.testing import assert_close

from blip_hf import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForPreTraining
from blip_hf.modeling import contrastive
from blip_hf.objectives import sample_hard_negatives
from tests.support.twins import DEC, tiny_batch, tiny_config, tiny_pretraining_config


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.usefixtures("_without_tf32"),
]
LOSSES = ("loss_itc", "loss_itm", "loss_lm")
# fp32 with other kernels and another order of summation.
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


def on_cuda(batch):
    return {name: value.cuda() for name, value in batch.items()}


def assert_same_gradients(model, expected):
    for name, parameter in model.named_parameters():
        if expected[name] is not None:
            assert_close(
                parameter.grad.cpu(), expected[name], msg=lambda text, name=name: f"{name}: {text}", **TOLERANCE
            )


def test_captioner_equals_the_cpu():
    model, batch = BlipForConditionalGeneration(tiny_config()), tiny_batch(first=DEC)
    expected = model(**batch, labels=batch["input_ids"])
    expected.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()

    model.cuda()
    output = model(**on_cuda(batch), labels=batch["input_ids"].cuda())
    output.loss.backward()
    assert_close(output.loss.cpu(), expected.loss, **TOLERANCE)
    assert_close(output.logits.cpu(), expected.logits, **TOLERANCE)
    assert_same_gradients(model, gradients)


def test_captioner_writes_what_the_cpu_writes():
    model, batch = BlipForConditionalGeneration(tiny_config()).eval(), tiny_batch()
    expected = model.generate(batch["pixel_values"], max_new_tokens=6, num_beams=3)
    generated = model.cuda().generate(batch["pixel_values"].cuda(), max_new_tokens=6, num_beams=3)
    assert torch.equal(generated.cpu(), expected)


@pytest.mark.parametrize("use_itm_head", [True, False])
def test_matcher_equals_the_cpu(use_itm_head):
    model, batch = BlipForImageTextRetrieval(tiny_config()).eval(), tiny_batch()
    with torch.no_grad():
        expected = model(**batch, use_itm_head=use_itm_head).itm_score
        score = model.cuda()(**on_cuda(batch), use_itm_head=use_itm_head).itm_score
    assert_close(score.cpu(), expected, **TOLERANCE)


def test_pretraining_step_equals_the_cpu(monkeypatch):
    def hardest(logits, positives, generator=None):  # the devices draw different random numbers
        _, has_negative = sample_hard_negatives(logits, positives, generator)
        return logits.masked_fill(positives, float("-inf")).argmax(dim=-1), has_negative

    monkeypatch.setattr(contrastive, "sample_hard_negatives", hardest)
    model, batch = BlipForPreTraining(tiny_pretraining_config()), tiny_batch(lengths=(7, 5, 6, 4))
    batch["image_ids"] = torch.tensor([1, 1, 2, 3])
    expected = model(**batch)
    expected.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()

    model.cuda()
    output = model(**on_cuda(batch))
    output.loss.backward()
    for name in LOSSES:
        assert_close(output[name].cpu(), expected[name], **TOLERANCE)
    assert_same_gradients(model, gradients)
    model.enqueue(output)
    model.cpu().enqueue(expected)  # the second four rows of the queue
    assert_close(model.queue.image_features[:4], model.queue.image_features[4:8], **TOLERANCE)
    assert torch.equal(model.queue.image_ids[:4], model.queue.image_ids[4:8])


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_bf16_autocast_step_is_finite(dropout):
    config = tiny_pretraining_config()
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = dropout
    model, batch = BlipForPreTraining(config).train().cuda(), on_cuda(tiny_batch(lengths=(7, 5, 6, 4)))
    optimiser = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        output = model(**batch)
    output.loss.backward()
    optimiser.step()
    model.update_momentum()
    model.enqueue(output)
    assert all(torch.isfinite(output[name]) for name in LOSSES)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert output.image_features.dtype == model.queue.image_features.dtype == torch.float32


def assert_never_waits(step):
    """That a step, once warm, makes the host wait for nothing."""
    step()  # kernels are loaded and memory is taken the first time
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("autocast", [False, True])
def test_training_step_never_waits_for_the_device(autocast):
    model, batch = BlipForPreTraining(tiny_pretraining_config()).train().cuda(), on_cuda(tiny_batch())
    batch["image_ids"] = torch.tensor([1, 1, 2], device="cuda")

    def step():
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
            output = model(**batch)
        output.loss.backward()
        model.update_momentum()
        model.enqueue(output)

    assert_never_waits(step)


def test_the_synchronisation_test_can_fail():
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(1, device="cuda").item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
