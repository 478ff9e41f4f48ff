# SPDX-License-Identifier: BSD-3-Clause
"""One captioning fine-tuning step (forward, backward, AdamW), compared with transformers.

In the first case both pad equally. In the second, transformers pads to 512 tokens and trains on all of them, as in its
notebook.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from blip_hf import BlipConfig, BlipForConditionalGeneration

from .harness import OURS, Case, Options, run
from .sizes import build, config_fields, pad_to, random_captions, random_pixels, upstream_model


# Batch size, batch size with the notebook's padding (24 GiB do not fit 8 rows), and length of that padding.
PROBLEMS = {"base": (8, 4, 512), "small": (4, 4, 256), "tiny": (2, 2, 64)}
CAPTION_LENGTH = 16
LEARNING_RATE = 1e-5


def cases(options: Options) -> Iterator[Case]:
    """Equal padding, then the notebook's padding for transformers, both in fp32."""
    batch_size, padded_batch_size, notebook_length = PROBLEMS[options.size_name]
    size, device = options.size, options.device
    ours = build(BlipForConditionalGeneration, BlipConfig(**config_fields(size)), device)
    upstream = upstream_model(ours)
    step_ours, step_theirs = stepper(ours), stepper(upstream)
    pixels = random_pixels(batch_size, size.image_size, device)
    captions = random_captions(batch_size, CAPTION_LENGTH, size, device)
    note = "Both use fused AdamW"

    def inputs(count: int) -> dict[str, Tensor]:
        ids = captions[:count]
        return {
            "pixel_values": pixels[:count],
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": ids,
        }

    yield Case(
        f"captioning fine-tune step, batch {batch_size}, {size.image_size} px, {CAPTION_LENGTH} tokens",
        {OURS: partial(step_ours, **inputs(batch_size)), "transformers": partial(step_theirs, **inputs(batch_size))},
        targets={"transformers": 1.15},
        note=note,
    )
    padded, _ = pad_to(captions[:padded_batch_size], notebook_length)
    notebook = {"pixel_values": pixels[:padded_batch_size], "input_ids": padded, "labels": padded}
    yield Case(
        f"captioning fine-tune step, batch {padded_batch_size}, upstream padded to {notebook_length}",
        {OURS: partial(step_ours, **inputs(padded_batch_size)), "transformers": partial(step_theirs, **notebook)},
        note=note,
    )


def stepper(model: torch.nn.Module) -> Callable[..., Tensor]:
    """A function that runs forward, backward and AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, fused=True)

    def step(**inputs: Tensor) -> Tensor:
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


if __name__ == "__main__":
    run("finetune_step", cases)
