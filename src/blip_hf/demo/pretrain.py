# SPDX-License-Identifier: BSD-3-Clause
"""Pre-training of a small BLIP on the embedded scenes, by a fixed number of steps, so that a seed repeats it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerCallback, default_data_collator, set_seed

from ..configuration_blip import BlipPreTrainingConfig
from ..data.scenes import Scenes, scene_vocabulary_texts
from ..data.vocabulary import train_wordpiece_tokenizer
from ..modeling.pretraining import BlipForPreTraining
from ..processing_blip import BlipProcessor
from ..training.arguments import BlipTrainingArguments
from ..training.contrastive_trainer import BlipContrastiveTrainer


LOSSES = ("loss_itc", "loss_itm", "loss_lm")

_PIXELS_PER_CHUNK = 2**23


@dataclass(frozen=True)
class DemoSettings:
    """Size and length of the demo. The defaults take a few minutes on two cores.

    Args:
        steps (`int`, *optional*, defaults to 1100):
            Optimiser steps.
        seed (`int`, *optional*, defaults to 0):
            Seed of scenes, weights and batches.
        num_scenes (`int`, *optional*, defaults to 8000):
            Scenes to train on.
        num_held_out (`int`, *optional*, defaults to 300):
            Scenes to caption and match, with indexes that are never trained on.
        batch_size (`int`, *optional*, defaults to 64):
            Pairs a step.
        learning_rate (`float`, *optional*, defaults to 1e-3):
            Peak of the learning rate; a small model bears more than the paper's 3e-4.
        hidden_size (`int`, *optional*, defaults to 128):
            Width of both towers, a multiple of 32.
        num_vision_layers (`int`, *optional*, defaults to 4):
            Depth of the image encoder.
        num_text_layers (`int`, *optional*, defaults to 2):
            Depth of the text transformer.
        image_size (`int`, *optional*, defaults to 64):
            Width and height of the images in pixels.
        patch_size (`int`, *optional*, defaults to 16):
            Width and height of a patch in pixels.
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
            raise ValueError(f"num_held_out={self.num_held_out} leaves nothing to choose from; pass 2 or more.")

    def training_scenes(self) -> Scenes:
        """The scenes to train on."""
        return Scenes(self.num_scenes, seed=self.seed, image_size=self.image_size)

    def held_out_scenes(self) -> Scenes:
        """The scenes to be captioned and matched, right after those of training."""
        return Scenes(self.num_held_out, start=self.num_scenes, seed=self.seed, image_size=self.image_size)


class EncodedScenes(Dataset[dict[str, Tensor]]):
    """Scenes as tensors in memory: drawn and tokenized once, not in each epoch.

    Args:
        scenes (`Scenes`):
            Images of one size.
        processor ([`BlipProcessor`]):
            What makes tensors of them.
    """

    def __init__(self, scenes: Scenes, processor: BlipProcessor) -> None:
        self.captions = scenes.captions()
        text = processor(text=self.captions, role="contrast", return_tensors="pt")
        self.input_ids, self.attention_mask = text["input_ids"], text["attention_mask"]  # (n, t)
        indexes = torch.arange(len(scenes))
        chunk_size = max(1, _PIXELS_PER_CHUNK // scenes.image_size**2)
        chunks = [
            processor([scenes[i]["image"] for i in chunk.tolist()], return_tensors="pt")["pixel_values"]
            for chunk in indexes.split(chunk_size)
        ]
        self.pixel_values = torch.cat(chunks)  # (n, 3, size, size)
        # A caption is true of every scene that has the same one: by a common id they are no negatives of each other.
        ids = {caption: i for i, caption in enumerate(dict.fromkeys(self.captions))}
        self.image_ids = torch.tensor([ids[caption] for caption in self.captions])  # (n,)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {
            "pixel_values": self.pixel_values[i],
            "input_ids": self.input_ids[i],
            "attention_mask": self.attention_mask[i],
            "image_ids": self.image_ids[i],
        }


def build_processor(image_size: int) -> BlipProcessor:
    """A processor with a vocabulary learnt from the words of the scenes.

    Args:
        image_size (`int`):
            Width and height of the images in pixels.

    Returns:
        `BlipProcessor`: the same on every run.
    """
    return BlipProcessor.from_bert_tokenizer(
        train_wordpiece_tokenizer(scene_vocabulary_texts()), image_size=image_size
    )


def build_config(settings: DemoSettings, processor: BlipProcessor) -> BlipPreTrainingConfig:
    """Configuration of a small model that learns fast: the run is short of time, not of data.

    What differs from the paper: no dropout and no label smoothing, wider initial weights, as the layers are narrower,
    and averages with a shorter memory, as there are fewer steps to remember.

    Args:
        settings (`DemoSettings`):
            Its size.
        processor ([`BlipProcessor`]):
            Whose tokens the model reads.

    Returns:
        `BlipPreTrainingConfig`: for [`BlipForPreTraining`].
    """
    width = {
        "hidden_size": settings.hidden_size,
        "intermediate_size": 4 * settings.hidden_size,
        "num_attention_heads": settings.hidden_size // 32,
        "initializer_range": 0.06,
    }
    return BlipPreTrainingConfig(
        text_config={
            **width,
            **processor.config_token_ids(),
            "num_hidden_layers": settings.num_text_layers,
            "max_position_embeddings": 64,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "label_smoothing": 0.0,
        },
        vision_config={
            **width,
            "num_hidden_layers": settings.num_vision_layers,
            "image_size": settings.image_size,
            "patch_size": settings.patch_size,
        },
        image_text_hidden_size=settings.hidden_size // 2,
        queue_size=settings.queue_size,
        momentum=0.98,
    )


class ReportProgress(TrainerCallback):
    """Calls a function with each log of the training losses.

    Args:
        report (`Callable[[dict[str, float]], None]`):
            Gets the log: `step`, the three losses and what else [`BlipContrastiveTrainer`] says.
    """

    def __init__(self, report: Callable[[dict[str, float]], None]) -> None:
        self.report = report

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Passes on logs of training; the one at its end has no losses."""
        if LOSSES[0] in logs:
            self.report({"step": state.global_step, **logs})


def pretrain(
    settings: DemoSettings,
    processor: BlipProcessor,
    train_dataset: EncodedScenes,
    output_dir: Path,
    report: Callable[[dict[str, float]], None],
) -> tuple[BlipForPreTraining, list[dict[str, float]]]:
    """Pre-trains from random weights, on the CPU.

    Args:
        settings (`DemoSettings`):
            Size and length of the run.
        processor ([`BlipProcessor`]):
            Whose tokens the model reads.
        train_dataset (`EncodedScenes`):
            What to train on.
        output_dir (`Path`):
            The trainer's folder. Nothing is saved in it.
        report (`Callable[[dict[str, float]], None]`):
            Called with each log of the losses.

    Returns:
        `tuple[BlipForPreTraining, list[dict[str, float]]]`: the model, and its losses: `step`, `loss_itc`, `loss_itm`
        and `loss_lm` of each log.
    """
    set_seed(settings.seed)
    model = BlipForPreTraining(build_config(settings, processor))
    args = BlipTrainingArguments(
        str(output_dir),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, settings.steps // 15),
        learn_temperature=False,
        max_grad_norm=1.0,
        alpha_ramp_epochs=2.0,
        logging_steps=max(1, settings.steps // 60),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=settings.seed,
        use_cpu=True,
    )
    trainer = BlipContrastiveTrainer(
        model,
        args,
        train_dataset=train_dataset,
        data_collator=default_data_collator,
        callbacks=[ReportProgress(report)],
    )
    trainer.pop_callback(PrinterCallback)
    trainer.train()
    history = [log for log in trainer.state.log_history if LOSSES[0] in log]
    return model.eval(), [{name: log[name] for name in ("step", *LOSSES)} for log in history]


__all__ = ["LOSSES", "DemoSettings", "EncodedScenes", "ReportProgress", "build_config", "build_processor", "pretrain"]
