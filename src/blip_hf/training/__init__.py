# SPDX-License-Identifier: BSD-3-Clause
"""Pre-training with transformers' Trainer."""

from .arguments import BlipTrainingArguments
from .trainer import BlipTrainer


__all__ = ["BlipTrainer", "BlipTrainingArguments"]
