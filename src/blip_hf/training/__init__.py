# SPDX-License-Identifier: BSD-3-Clause
"""Pre-training and retrieval fine-tuning with transformers' Trainer."""

from .arguments import BlipRetrievalTrainingArguments, BlipTrainingArguments
from .trainer import BlipTrainer


__all__ = ["BlipRetrievalTrainingArguments", "BlipTrainer", "BlipTrainingArguments"]
