# SPDX-License-Identifier: BSD-3-Clause
"""Compares the estimates of `blip-hf plan` with measured steps on this CPU.

    OMP_NUM_THREADS=1 python -m benchmarks.plan

The FLOP/s of the machine are measured with a step of a model of 2 layers. They predict the step of another one, of 6 layers.
Prints one JSON object.
"""

import json
import multiprocessing
import resource
import time
from typing import Any

import torch

from blip_hf import BlipForPreTraining, BlipPreTrainingConfig
from blip_hf.planning import CAPTION_LENGTH, Device, count_work, make_plan

from .sizes import SIZES, config_fields


IMAGE_SIZE, QUEUE_SIZE, BATCH_SIZE = 224, 1024, 8
NUM_STEPS = 5


def main() -> None:
    """Measures both models, each in a process of its own."""
    calibration, target = (make_config(number) for number in (2, 6))
    memory_rate = measure_copies()
    updates = plan_of(calibration, Device(float("inf"), 0, memory_rate)).step_seconds
    flops = BATCH_SIZE * count_work(calibration, torch.float32).flops
    device = Device(flops / (measure(calibration)["seconds"] - updates), 0, memory_rate)
    plan, measured = plan_of(target, device), measure(target)
    print(
        json.dumps(
            {
                "gflops_per_second": round(device.flops_per_second / 1e9, 1),
                "planned_seconds": round(plan.step_seconds, 3),
                "measured_seconds": round(measured["seconds"], 3),
                "time_ratio": round(plan.step_seconds / measured["seconds"], 3),
                "planned_gb": round(plan.memory_bytes / 1e9, 3),
                "measured_gb": round(measured["bytes"] / 1e9, 3),
                "memory_ratio": round(plan.memory_bytes / measured["bytes"], 3),
            }
        )
    )


def make_config(num_layers: int) -> BlipPreTrainingConfig:
    """The configuration of the small model with some layers."""
    fields = config_fields(SIZES["small"], IMAGE_SIZE)
    for encoder in fields.values():
        encoder["num_hidden_layers"] = num_layers
    return BlipPreTrainingConfig(**fields, queue_size=QUEUE_SIZE)


def plan_of(config: BlipPreTrainingConfig, device: Device) -> Any:
    """The plan of one device without a share: its rate is that of a step."""
    return make_plan(
        count_work(config, torch.float32),
        device,
        num_devices=1,
        batch_size=BATCH_SIZE,
        num_pairs=1,
        num_epochs=1,
        peak_share=1,
        pair_bytes=1,
    )


def measure_copies() -> float:
    """Bytes/s of a copy, read and written."""
    source = torch.zeros(2**26, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(_seconds(lambda: target.copy_(source)) for _ in range(10))


def measure(config: BlipPreTrainingConfig) -> dict[str, float]:
    """Best time of a step, and the growth of the memory of a process that builds the model and trains."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (config.to_dict(),))


def _measure(fields: dict[str, Any]) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = BlipForPreTraining(BlipPreTrainingConfig.from_dict(fields)).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    pixels = torch.randn(BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE)
    words = torch.randint(110, 5000, (BATCH_SIZE, CAPTION_LENGTH))

    def step() -> None:
        output = model(pixels, words, torch.ones_like(words), alpha=0.4)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_momentum()
        model.enqueue(output)

    step()
    seconds = min(_seconds(step) for _ in range(NUM_STEPS))
    return {"seconds": seconds, "bytes": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)}


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
