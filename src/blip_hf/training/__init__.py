# SPDX-License-Identifier: BSD-3-Clause
"""Pre-training and fine-tuning with transformers' Trainer."""

from .arguments import BlipFinetuningArguments, BlipTrainingArguments
from .task_trainer import BlipTaskTrainer
from .trainer import BlipTrainer


__all__ = ["BlipFinetuningArguments", "BlipTaskTrainer", "BlipTrainer", "BlipTrainingArguments"]
