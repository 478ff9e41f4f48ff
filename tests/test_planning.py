# SPDX-License-Identifier: BSD-3-Clause
import pytest
import torch

from blip_hf import BlipPreTrainingConfig
from blip_hf.modeling.pretraining import BlipForPreTraining
from blip_hf.planning import Device, Work, _count, count_work, make_plan


DEVICE = Device(flops_per_second=1e12, memory_bytes=1e9, bytes_per_second=1e9)
WORK = Work(flops=2e9, activation_bytes=1e6, num_trained=1_000_000, num_fixed=500_000)
OPTIONS = {"num_devices": 4, "batch_size": 10, "num_pairs": 4e6, "num_epochs": 3, "peak_share": 0.5, "pair_bytes": 1e4}


def tiny_config(num_vision=3, num_text=4):
    common = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    vision = {**common, "num_hidden_layers": num_vision, "image_size": 32, "patch_size": 16}
    text = {
        **common,
        "num_hidden_layers": num_text,
        "encoder_hidden_size": 32,
        "vocab_size": 64,
        "bos_token_id": 62,
        "enc_token_id": 63,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    return BlipPreTrainingConfig(vision_config=vision, text_config=text, queue_size=8, image_text_hidden_size=8)


def test_plan_is_its_closed_form():
    plan = make_plan(WORK, DEVICE, **OPTIONS)

    # Arithmetic: 10 * 2e9 / (0.5 * 1e12) = 0.04 s. AdamW: 28 MB, EMA: 6 MB, at 1e9 bytes/s.
    assert plan.step_seconds == pytest.approx(0.04 + 0.028 + 0.006)
    # Weights, two moments and buckets of gradients of 1e6 values, and 5e5 fixed ones, of 4 bytes; 10 pairs of 1 MB.
    assert plan.memory_bytes == pytest.approx(16e6 + 2e6 + 10e6)
    # 3 * 4e6 pairs, 40 a step.
    assert plan.num_steps == pytest.approx(300_000)
    assert plan.days == pytest.approx(300_000 * 0.074 / 86_400)
    assert plan.storage_bytes == pytest.approx(4e10)
    assert plan.read_bytes_per_second == pytest.approx(40 * 1e4 / 0.074)


def test_memory_of_small_batches_is_that_of_gradients():
    plans = [make_plan(WORK, DEVICE, **{**OPTIONS, "num_devices": 1, "batch_size": size}) for size in (1, 4, 8)]

    assert [plan.memory_bytes for plan in plans] == pytest.approx([18e6, 18e6, 22e6])


def test_time_and_data_rates_scale_with_devices():
    one, two = (make_plan(WORK, DEVICE, **{**OPTIONS, "num_devices": number}) for number in (1, 2))

    assert two.days == pytest.approx(one.days / 2)
    assert two.memory_bytes == one.memory_bytes + 4 * WORK.num_trained  # buckets of gradients
    assert two.read_bytes_per_second == pytest.approx(2 * one.read_bytes_per_second)
    assert (two.step_seconds, two.storage_bytes) == (one.step_seconds, one.storage_bytes)


def test_layers_are_extrapolated_to_the_whole_model():
    config = tiny_config()
    work = count_work(config, torch.float32)
    flops, activation_bytes = _count(config, 3, 4, torch.float32)
    model = BlipForPreTraining(config)

    assert work.flops == pytest.approx(flops, rel=1e-9)
    assert work.activation_bytes == pytest.approx(activation_bytes, rel=0.01)
    assert work.num_trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_flops_of_a_wider_layer_grow_as_its_products():
    """A layer has 24 t d^2 + 4 t^2 d FLOPs forward with an inner width of 4 d, and twice as many backward."""
    one, two = (count_work(tiny_config(num_vision=number), torch.float32).flops for number in (2, 3))
    tokens, width, inner = 5, 32, 64
    forward = 2 * tokens * (4 * width**2 + 2 * width * inner) + 4 * tokens**2 * width
    # Online encoder: forward and backward; momentum encoder: forward. torch counts 2.5 times the attention backward.
    products, attention = forward - 4 * tokens**2 * width, 4 * tokens**2 * width
    assert two - one in (pytest.approx(4 * products + 4.5 * attention), pytest.approx(4 * products + 4 * attention))
