# SPDX-License-Identifier: BSD-3-Clause
"""Models on CUDA: equal results to the CPU, no synchronization in steps, half precision, the flash kernel."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from blip_hf import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering
from blip_hf.modeling import contrastive
from tests.support.batches import (
    CONTRASTIVE_TASKS,
    TASK_MODELS,
    hardest_negatives,
    make_model_and_batch,
    weighted_vqa_batch,
)
from tests.support.cuda import NEEDS_CUDA, TOLERANCE, assert_never_waits, on_cuda
from tests.support.tiny_models import tiny_batch, tiny_config


pytestmark = NEEDS_CUDA


@pytest.fixture
def _same_negatives(monkeypatch):
    """Uses the hardest negatives, since the devices draw different random numbers."""
    monkeypatch.setattr(contrastive, "sample_hard_negatives", hardest_negatives)


def assert_same_step(model, batch):
    """Asserts that outputs and gradients on CUDA equal those of the CPU; leaves the model on CUDA."""
    expected = model(**batch)
    expected.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()

    output = model.cuda()(**on_cuda(batch))
    output.loss.backward()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert_close(output[name].cpu(), value, msg=lambda text, name=name: f"{name}: {text}", **TOLERANCE)
    for name, parameter in model.named_parameters():
        if gradients[name] is not None:
            assert_close(
                parameter.grad.cpu(), gradients[name], msg=lambda text, name=name: f"{name}: {text}", **TOLERANCE
            )
    return expected, output


# Equality with the CPU


@pytest.mark.usefixtures("_same_negatives")
@pytest.mark.parametrize("task", TASK_MODELS)
def test_a_step_equals_the_cpu(task):
    model, batch = make_model_and_batch(task)
    expected, output = assert_same_step(model, batch)
    if task in CONTRASTIVE_TASKS:
        model.enqueue(output)
        assert_close(model.queue.text_features[:3].cpu(), expected.momentum_text_features, **TOLERANCE)
        assert torch.equal(model.queue.image_ids[:3].cpu(), batch["image_ids"])


def test_a_step_with_several_answers_a_question_equals_the_cpu():
    model = BlipForQuestionAnswering(tiny_config()).eval()  # in evaluation mode all positions have logits
    assert_same_step(model, weighted_vqa_batch())


@pytest.mark.parametrize("use_itm_head", [True, False])
def test_matcher_equals_the_cpu(use_itm_head):
    model, batch = BlipForImageTextRetrieval(tiny_config()).eval(), tiny_batch()
    with torch.no_grad():
        expected = model(**batch, use_itm_head=use_itm_head).itm_score
        score = model.cuda()(**on_cuda(batch), use_itm_head=use_itm_head).itm_score
    assert_close(score.cpu(), expected, **TOLERANCE)


@pytest.mark.parametrize("model_class", [BlipForConditionalGeneration, BlipForQuestionAnswering])
def test_generated_texts_equal_the_cpus(model_class):
    model, batch = model_class(tiny_config()).eval(), tiny_batch()
    if model_class is BlipForConditionalGeneration:
        batch = {"pixel_values": batch["pixel_values"]}
    expected = model.generate(**batch, max_new_tokens=6, num_beams=3)
    generated = model.cuda().generate(**on_cuda(batch), max_new_tokens=6, num_beams=3)
    assert torch.equal(generated.cpu(), expected)


def test_ranked_answers_equal_the_cpus():
    model, batch = BlipForQuestionAnswering(tiny_config()).eval(), tiny_batch()
    answers = tiny_batch((4, 6, 3, 5), seed=3)["input_ids"]
    expected = model.rank_answers(**batch, answer_ids=answers, num_candidates=3)
    ranking = model.cuda().rank_answers(**on_cuda(batch), answer_ids=answers.cuda(), num_candidates=3)
    assert torch.equal(ranking.best.cpu(), expected.best)
    assert torch.equal(ranking.candidates.cpu(), expected.candidates)
    assert_close(ranking.scores.cpu(), expected.scores, **TOLERANCE)


# Training steps


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("task", TASK_MODELS)
def test_bf16_autocast_step_is_finite(task, dropout):
    model, batch = make_model_and_batch(task)
    config = model.config.text_config
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    model = type(model)(model.config).train().cuda()
    optimizer = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        output = model(**on_cuda(batch))
    assert output.loss.dtype == torch.float32
    assert output.loss.isfinite()
    output.loss.backward()
    optimizer.step()
    if task in CONTRASTIVE_TASKS:
        model.update_momentum()
        model.enqueue(output)
        assert output.image_features.dtype == model.queue.image_features.dtype == torch.float32
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("task", TASK_MODELS)
def test_training_step_does_not_synchronize_with_the_device(task, autocast):
    model, batch = make_model_and_batch(task)
    model.cuda()
    batch = on_cuda(batch)

    def step():
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
            output = model(**batch)
        output.loss.backward()
        if task in CONTRASTIVE_TASKS:
            model.update_momentum()
            model.enqueue(output)

    assert_never_waits(step)


def test_synchronization_with_the_device_is_detected():
    with pytest.raises(RuntimeError, match="synchroniz"):
        assert_never_waits(lambda: torch.ones(1, device="cuda").item())


# Half precision


@pytest.mark.usefixtures("_same_negatives")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("task", TASK_MODELS)
def test_half_precision_weights_give_a_finite_loss_near_that_of_fp32(task, dtype):
    model, batch = make_model_and_batch(task)
    with torch.no_grad():
        expected = model(**batch).loss
        output = model.to("cuda", dtype)(**on_cuda(batch))
    assert output.loss.dtype == torch.float32
    assert output.loss.isfinite()
    # An error of 0.01 of a similarity moves a logit by 0.14 at a temperature of 0.07, and these weights are wide.
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


@pytest.mark.parametrize("task", TASK_MODELS)
def test_sdpa_equals_eager(task):
    model, batch = make_model_and_batch(task)
    model.eval().cuda()
    losses = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        torch.manual_seed(0)  # for the hard negatives
        losses.append(model(**on_cuda(batch)).loss)
    assert_close(*losses, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_images_and_texts_without_padding_run_on_the_flash_kernel(dtype):
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("the flash kernel needs compute capability 8.0")
    config = tiny_config()
    config.vision_config.hidden_size, config.text_config.hidden_size = 32, 32  # 16 per head: no padding of heads
    config.text_config.encoder_hidden_size = 32
    matcher = BlipForImageTextRetrieval(config).eval().to("cuda", dtype)
    captioner = BlipForConditionalGeneration(config).eval().to("cuda", dtype)
    batch = on_cuda(tiny_batch((6, 6, 6)))

    def run():
        memory = matcher.get_image_memory(batch["pixel_values"][:1])  # which all three texts read
        logits = matcher.get_itm_logits(memory, batch["input_ids"])
        return logits, captioner.get_image_memory(batch["pixel_values"]).keys[0]

    def use(implementation):
        for model in (matcher, captioner):
            model.set_attn_implementation(implementation)

    with torch.no_grad():
        use("eager")
        expected = run()
        use("sdpa")
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises if another kernel is needed
            flash = run()
    # Eight bits of precision, of values up to about 10.
    assert_close(flash, expected, atol=0.15, rtol=0.05)
