# SPDX-License-Identifier: BSD-3-Clause
"""Pre-training and fine-tuning with transformers' Trainer."""

from .arguments import BlipFinetuningArguments, BlipTrainingArguments
from .contrastive_trainer import BlipContrastiveTrainer
from .trainer import BlipTrainer


__all__ = ["BlipContrastiveTrainer", "BlipFinetuningArguments", "BlipTrainer", "BlipTrainingArguments"]
