# SPDX-License-Identifier: BSD-3-Clause
"""One captioning fine-tune step with forward, backward and AdamW, beside transformers.

With equal padding only the models differ. Its notebook pads to 512 tokens and has all of them as labels; what that costs
is the second figure.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from blip_hf import BlipConfig, BlipForConditionalGeneration

from .harness import OURS, Case, Options, run
from .sizes import build, config_fields, pad_to, random_captions, random_pixels, upstream_twin


# Captions, and the length that the notebook pads them to.
PROBLEMS = {"base": (8, 512), "small": (4, 256), "tiny": (2, 64)}
CAPTION_LENGTH = 16
LEARNING_RATE = 1e-5


def cases(options: Options) -> Iterator[Case]:
    """One case, in fp32."""
    batch_size, notebook_length = PROBLEMS[options.size_name]
    size, device = options.size, options.device
    ours = build(BlipForConditionalGeneration, BlipConfig(**config_fields(size)), device)
    theirs = upstream_twin(ours)
    pixels = random_pixels(batch_size, size.image_size, device)
    captions = random_captions(batch_size, CAPTION_LENGTH, size, device)
    long_captions, _ = pad_to(captions, notebook_length)
    mask = torch.ones_like(captions)

    def stepper(model: torch.nn.Module, **inputs: Tensor) -> object:
        model.train()
        optimizer = _optimizer(model)

        def step() -> Tensor:
            loss = model(pixel_values=pixels, **inputs).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    yield Case(
        f"captioning fine-tune step, batch {batch_size}, {size.image_size} px, {CAPTION_LENGTH} tokens",
        {
            OURS: stepper(ours, input_ids=captions, attention_mask=mask, labels=captions),
            "transformers": stepper(theirs, input_ids=captions, attention_mask=mask, labels=captions),
            f"transformers, padded to {notebook_length}": stepper(
                theirs, input_ids=long_captions, labels=long_captions
            ),
        },
        targets={"transformers": 1.15},
        note="AdamW is fused on both sides; each way of transformers has its own state of it",
    )


def _optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), LEARNING_RATE, fused=True)


if __name__ == "__main__":
    run("finetune_step", cases)
