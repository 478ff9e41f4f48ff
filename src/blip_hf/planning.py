# SPDX-License-Identifier: BSD-3-Clause
"""Memory, time and data rates of a pre-training, from counted FLOPs and bytes and from stated rates of devices."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from .configuration_blip import BlipPreTrainingConfig
from .modeling.activations import record_saved_tensors
from .modeling.pretraining import BlipForPreTraining


CAPTION_LENGTH = 30
"""Tokens of a caption, the maximum in BLIP's pre-training."""
_COUNTED_PAIRS = 2
_ALPHA = 0.4
_SECONDS_PER_DAY = 86_400
# AdamW reads the weight, gradient and two moments, and writes all but the gradient; the EMA reads two and writes one.
_UPDATE_BYTES, _EMA_BYTES = 7 * 4, 3 * 4


@dataclass(frozen=True)
class Device:
    """Published peak rates of a device: dense bf16 FLOP/s, bytes of memory, and bytes/s of it."""

    flops_per_second: float
    memory_bytes: float
    bytes_per_second: float


DEVICES = {
    "a100": Device(312e12, 80e9, 2.039e12),
    "h100": Device(989e12, 80e9, 3.35e12),
    "h200": Device(989e12, 141e9, 4.8e12),
    "l40s": Device(362e12, 48e9, 0.864e12),
}
"""NVIDIA's data sheets: A100 80GB SXM, H100 SXM, H200 SXM, L40S."""

MODELS: dict[str, dict[str, int]] = {
    "base": {},
    "large": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
}
"""Fields of the image encoder: ViT-B/16 and ViT-L/16. The text transformer is BERT-base in both."""


@dataclass(frozen=True)
class Work:
    """What a model takes: FLOPs and activation bytes of a pair, and numbers of values of the weights."""

    flops: float
    activation_bytes: float
    num_trained: int
    num_fixed: int  # momentum encoder and queue


@dataclass(frozen=True)
class Plan:
    """The result of [`make_plan`]. Sizes in bytes, times in seconds."""

    memory_bytes: float
    step_seconds: float
    num_steps: float
    days: float
    storage_bytes: float
    read_bytes_per_second: float


def make_config(model: str, image_size: int) -> BlipPreTrainingConfig:
    """The configuration of a model of the paper."""
    return BlipPreTrainingConfig(vision_config={**MODELS[model], "image_size": image_size})


def count_work(config: BlipPreTrainingConfig, dtype: torch.dtype = torch.bfloat16) -> Work:
    """Counts FLOPs and saved activations of a step (forward, backward) under autocast.

    Runs models of one and two layers on the CPU. Both counts are linear in the number of layers of each encoder.
    """
    with torch.device("meta"):
        whole = BlipForPreTraining(config)
    trained = sum(parameter.numel() for parameter in whole.parameters() if parameter.requires_grad)
    values = sum(tensor.numel() for tensor in [*whole.parameters(), *whole.buffers()])
    num_vision, num_text = config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers
    least, deeper_vision, deeper_text = (_count(config, *layers, dtype) for layers in ((1, 1), (2, 1), (1, 2)))
    flops, activations = (
        one + (num_vision - 1) * (vision - one) + (num_text - 1) * (text - one)
        for one, vision, text in zip(least, deeper_vision, deeper_text, strict=True)
    )
    return Work(flops, activations, trained, values - trained)


def make_plan(
    work: Work,
    device: Device,
    *,
    num_devices: int,
    batch_size: int,
    num_pairs: float,
    num_epochs: float,
    peak_share: float,
    pair_bytes: float,
) -> Plan:
    """Derives memory, time and data rates. `batch_size` is that of a device, `peak_share` the assumed share of its FLOP/s.

    Weights, gradients and moments are float32 and replicated. Communication is taken to overlap with the backward pass,
    and evaluation and checkpoints are not counted.
    """
    arithmetic = batch_size * work.flops / (peak_share * device.flops_per_second)
    updates = (_UPDATE_BYTES * work.num_trained + _EMA_BYTES * work.num_fixed) / device.bytes_per_second
    step_seconds = arithmetic + updates
    pairs_per_step = num_devices * batch_size
    num_steps = num_epochs * num_pairs / pairs_per_step
    # The backward pass frees activations as it makes gradients. Data parallelism keeps buckets of gradients.
    gradients = 4 * work.num_trained
    buckets = gradients if num_devices > 1 else 0
    values = 4 * (3 * work.num_trained + work.num_fixed) + buckets
    return Plan(
        memory_bytes=values + max(gradients, batch_size * work.activation_bytes),
        step_seconds=step_seconds,
        num_steps=num_steps,
        days=num_steps * step_seconds / _SECONDS_PER_DAY,
        storage_bytes=num_pairs * pair_bytes,
        read_bytes_per_second=pairs_per_step * pair_bytes / step_seconds,
    )


def _count(config: BlipPreTrainingConfig, num_vision: int, num_text: int, dtype: torch.dtype) -> tuple[float, float]:
    """FLOPs and saved bytes of a pair with few layers."""
    fields = config.to_dict()
    fields["vision_config"]["num_hidden_layers"] = num_vision
    fields["text_config"]["num_hidden_layers"] = num_text
    model = BlipForPreTraining(BlipPreTrainingConfig.from_dict(fields)).train()
    size = config.vision_config.image_size
    pixels = torch.zeros(_COUNTED_PAIRS, 3, size, size)
    words = torch.ones(_COUNTED_PAIRS, CAPTION_LENGTH, dtype=torch.long)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        with autocast, record_saved_tensors(model) as saved:
            loss = model(pixels, words, torch.ones_like(words), alpha=_ALPHA).loss
        loss.backward()
    return counter.get_total_flops() / _COUNTED_PAIRS, saved.num_bytes / _COUNTED_PAIRS


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# torch's FLOP counter lacks fused attention on CPUs.
_FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}

__all__ = ["CAPTION_LENGTH", "DEVICES", "MODELS", "Device", "Plan", "Work", "count_work", "make_config", "make_plan"]
