# SPDX-License-Identifier: BSD-3-Clause
"""Settings of the demo: a small model and a short schedule for `pretrain` on drawn scenes."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.scenes import Scenes
from ..tasks.pretrain import PretrainOptions


if TYPE_CHECKING:
    from ..training import BlipTrainingArguments


@dataclass(frozen=True)
class DemoSettings:
    """Size and length of the demo. The defaults take a few minutes on two cores.

    Args:
        steps (`int`, *optional*, defaults to 1100):
            Optimizer steps.
        seed (`int`, *optional*, defaults to 0):
            Seed of weights and batches.
        num_scenes (`int`, *optional*, defaults to 8000):
            Scenes to train on.
        num_held_out (`int`, *optional*, defaults to 300):
            Further scenes to caption and match.
        batch_size (`int`, *optional*, defaults to 64):
            Pairs per step.
        learning_rate (`float`, *optional*, defaults to 1e-3):
            Peak learning rate. Small models train with a higher one than the paper's 3e-4.
        hidden_size (`int`, *optional*, defaults to 128):
            Width of image encoder and text transformer, a multiple of 32.
        num_vision_layers (`int`, *optional*, defaults to 4):
            Layers of the image encoder.
        num_text_layers (`int`, *optional*, defaults to 2):
            Layers of the text transformer.
        image_size (`int`, *optional*, defaults to 64):
            Height and width of the images in pixels.
        patch_size (`int`, *optional*, defaults to 16):
            Height and width of a patch in pixels.
        queue_size (`int`, *optional*, defaults to 256):
            Pairs in the contrastive queue.

    Raises:
        ValueError: If there is nothing to train on, or to compare.
    """

    steps: int = 1100
    seed: int = 0
    num_scenes: int = 8000
    num_held_out: int = 300
    batch_size: int = 64
    learning_rate: float = 1e-3
    hidden_size: int = 128
    num_vision_layers: int = 4
    num_text_layers: int = 2
    image_size: int = 64
    patch_size: int = 16
    queue_size: int = 256

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} trains nothing; pass 1 or more.")
        if self.num_scenes < self.batch_size:
            raise ValueError(f"num_scenes={self.num_scenes} does not fill one batch; pass {self.batch_size} or more.")
        if self.num_held_out < 2:
            raise ValueError(f"num_held_out={self.num_held_out} is too few for retrieval; pass 2 or more.")

    def held_out_scenes(self) -> Scenes:
        """The scenes to caption and match, which follow those of training."""
        return Scenes(self.num_held_out, start=self.num_scenes, image_size=self.image_size)

    def pretrain_options(self) -> PretrainOptions:
        """Options of `pretrain`.

        Unlike the paper: no dropout and no label smoothing, a larger initializer range for narrow layers, and a smaller
        momentum for few steps.
        """
        return PretrainOptions(
            data=["scenes"],
            num_scenes=self.num_scenes,
            augment=False,
            overwrite=True,
            in_memory=True,
            image_size=self.image_size,
            patch_size=self.patch_size,
            vision_width=self.hidden_size,
            vision_layers=self.num_vision_layers,
            text_width=self.hidden_size,
            text_layers=self.num_text_layers,
            head_width=32,
            feature_width=self.hidden_size // 2,
            initializer_range=0.06,
            dropout=0.0,
            label_smoothing=0.0,
            queue_size=self.queue_size,
            momentum=0.98,
        )

    def training_arguments(self, output_dir: Path) -> "BlipTrainingArguments":
        """Arguments of the trainer, on the CPU."""
        from ..training import BlipTrainingArguments

        return BlipTrainingArguments(
            str(output_dir),
            max_steps=self.steps,
            per_device_train_batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, self.steps // 15),
            learn_temperature=False,
            max_grad_norm=1.0,
            alpha_ramp_epochs=2.0,
            logging_steps=max(1, self.steps // 60),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=self.seed,
            use_cpu=True,
        )


__all__ = ["DemoSettings"]
