# SPDX-License-Identifier: BSD-3-Clause
"""One pre-training step (forward, backward, EMA, queue, AdamW), compared with the procedure of salesforce/BLIP.

Both train the same model with the same AdamW state: the baseline with a loop over parameters, ours fused. Peak memory
excludes weights, gradients and optimiser state.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from blip_hf import BlipForPreTraining, BlipPreTrainingConfig

from . import original
from .harness import OURS, Case, Options, run
from .sizes import build, config_fields, pad_to, random_captions, random_pixels


# Batch size, image size, and queue size.
PROBLEMS = {"base": (8, 224, 57_600), "small": (4, 128, 4_096), "tiny": (2, 32, 16)}
CAPTION_LENGTH = 12
ALPHA = 0.4
LEARNING_RATE = 1e-5


def cases(options: Options) -> Iterator[Case]:
    """A step in fp32, and one with bf16 autocast."""
    batch_size, image_size, queue_size = PROBLEMS[options.size_name]
    for dtype, target in ((torch.float32, 1.6), (torch.bfloat16, 1.5)):
        steps = Steps(options, batch_size, image_size, queue_size, dtype)
        yield Case(
            f"pre-training step, batch {batch_size}, {image_size} px, {CAPTION_LENGTH} tokens,"
            f" {'fp32' if dtype == torch.float32 else 'bf16 autocast'}",
            {OURS: steps.ours, "original": steps.theirs},
            targets={"original": target},
            memory_targets={"original": 0.6},
            dtype=dtype,
            prepare_memory=steps.keep_gradients,
        )


class Steps:
    """Both implementations of a step."""

    def __init__(
        self, options: Options, batch_size: int, image_size: int, queue_size: int, dtype: torch.dtype
    ) -> None:
        config = BlipPreTrainingConfig(**config_fields(options.size, image_size), queue_size=queue_size)
        self.model = build(BlipForPreTraining, config, options.device).train()
        self.pixels = random_pixels(batch_size, image_size, options.device)
        captions = random_captions(batch_size, CAPTION_LENGTH, options.size, options.device)
        self.captions, self.mask = captions, torch.ones_like(captions)
        self.padded, self.padded_mask = pad_to(captions, original.PRETRAINING_LENGTH)
        self.autocast = torch.autocast(options.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.fused = torch.optim.AdamW(trained, LEARNING_RATE, weight_decay=0.05, fused=True)
        self.plain = torch.optim.AdamW(trained, LEARNING_RATE, weight_decay=0.05, foreach=False)
        self.plain.state = self.fused.state
        self.gradients_stay = False

    def keep_gradients(self) -> None:
        """Keeps gradients allocated between steps, to exclude them from the memory of a step."""
        self.gradients_stay = True
        self.ours()

    def ours(self) -> Tensor:
        """A step as in `BlipContrastiveTrainer`."""
        with self.autocast:
            output = self.model(self.pixels, self.captions, self.mask, alpha=ALPHA)
        self._learn(output.loss, self.fused)
        self.model.update_momentum()
        self.model.enqueue(output)
        return output.loss.detach()

    def theirs(self) -> Tensor:
        """A step of the original, which updates the momentum encoder and the queue in forward."""
        with self.autocast, original.nothing_recomputed():
            losses = original.pretraining_losses(self.model, self.pixels, self.padded, self.padded_mask, ALPHA)
        loss = sum(losses)
        self._learn(loss, self.plain)
        return loss.detach()

    def _learn(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=not self.gradients_stay)
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    run("pretraining_step", cases)
