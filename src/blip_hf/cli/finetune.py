# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf finetune`: fine-tunes a model for one task, with the paper's settings for it as defaults."""

import json
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType

from ..tasks.options import (
    CaptionFinetuneOptions,
    Nlvr2FinetuneOptions,
    RetrievalFinetuneOptions,
    VqaFinetuneOptions,
)
from .options import Command, parse_task


def _trainer_arguments() -> type:
    from ..training import BlipFinetuningArguments

    return BlipFinetuningArguments


def _command(task: str, description: str, options: type, recipe: Mapping[str, float]) -> Command:
    return Command(
        prog=f"blip-hf finetune {task}",
        description=description,
        options=options,
        usage="--model CHECKPOINT --data SOURCE [SOURCE ...]",
        trainer_arguments=_trainer_arguments,
        trainer_defaults=MappingProxyType(recipe),
    )


# Learning rate and epochs of ViT-B: the paper, table 14.
COMMANDS = {
    "caption": _command(
        "caption",
        "Fine-tunes a captioner.",
        CaptionFinetuneOptions,
        {"learning_rate": 1e-5, "num_train_epochs": 5},
    ),
    "retrieval": _command(
        "retrieval",
        "Fine-tunes a matcher by contrast and matching, for retrieval in both directions.",
        RetrievalFinetuneOptions,
        {"learning_rate": 1e-5, "num_train_epochs": 6},
    ),
    "vqa": _command(
        "vqa",
        "Fine-tunes a model that answers questions about images.",
        VqaFinetuneOptions,
        {"learning_rate": 2e-5, "num_train_epochs": 10},
    ),
    "nlvr2": _command(
        "nlvr2",
        "Fine-tunes a model that says whether a sentence is true of two images.",
        Nlvr2FinetuneOptions,
        {"learning_rate": 3e-5, "num_train_epochs": 15},
    ),
}
MODULES = {"caption": "caption", "retrieval": "retrieval", "vqa": "vqa", "nlvr2": "nlvr2"}


def main(argv: Sequence[str] | None = None) -> int:
    """Fine-tunes, evaluates where a set is named, saves, and prints the metrics as JSON on the last line.

    Args:
        argv (`Sequence[str]`, *optional*):
            The task, and its arguments. Those of the process by default.

    Returns:
        `int`: 0.
    """
    parsed = parse_task("blip-hf finetune", COMMANDS, sys.argv[1:] if argv is None else argv)
    if parsed is None:
        return 0
    task, (options, training_arguments) = parsed
    metrics = import_module(f"..tasks.{MODULES[task]}", __package__).finetune(options, training_arguments)
    if training_arguments.process_index == 0:
        print(json.dumps(metrics))
    return 0


__all__ = ["COMMANDS", "MODULES", "main"]
