# SPDX-License-Identifier: BSD-3-Clause
"""Pre-training and fine-tuning with transformers' Trainer."""

import warnings
from typing import Any

from .arguments import BlipFinetuningArguments, BlipTrainingArguments
from .contrastive_trainer import BlipContrastiveTrainer
from .trainer import BlipTrainer


__all__ = ["BlipContrastiveTrainer", "BlipFinetuningArguments", "BlipTrainer", "BlipTrainingArguments"]


def __getattr__(name: str) -> Any:
    if name != "BlipTaskTrainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "`blip_hf.training.BlipTaskTrainer` is deprecated and will be removed in version 0.3. Use `BlipTrainer`.",
        FutureWarning,
        stacklevel=2,
    )
    return BlipTrainer
