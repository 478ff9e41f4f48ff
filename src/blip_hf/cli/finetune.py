# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf finetune`: fine-tunes a model for one task, with the paper's settings for it as defaults."""

import json
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..tasks.options import (
    CaptionFinetuneOptions,
    FinetuneOptions,
    Nlvr2FinetuneOptions,
    RetrievalFinetuneOptions,
    VqaFinetuneOptions,
)
from .parser import Command, CommandGroup


if TYPE_CHECKING:
    from ..training import BlipFinetuningArguments


def _trainer_arguments(task: str) -> tuple[type, Mapping[str, Any]]:
    from ..training.arguments import TASK_RECIPES, BlipFinetuningArguments

    return BlipFinetuningArguments, TASK_RECIPES[task]


def _run(task: str, options: FinetuneOptions, arguments: "BlipFinetuningArguments") -> None:
    metrics = import_module(f"..tasks.{task}", __package__).finetune(options, arguments)
    if arguments.process_index == 0:
        print(json.dumps(metrics))


def _command(task: str, description: str, options: type) -> Command:
    return Command(
        prog=f"blip-hf finetune {task}",
        description=description,
        options=options,
        run=partial(_run, task),
        trainer_arguments=partial(_trainer_arguments, task),
    )


COMMANDS = {
    "caption": _command("caption", "Fine-tunes a captioner", CaptionFinetuneOptions),
    "retrieval": _command(
        "retrieval", "Fine-tunes a model for retrieval, with the contrastive and ITM losses", RetrievalFinetuneOptions
    ),
    "vqa": _command("vqa", "Fine-tunes a model that answers questions about images", VqaFinetuneOptions),
    "nlvr2": _command(
        "nlvr2", "Fine-tunes a model that decides whether a sentence is true of two images", Nlvr2FinetuneOptions
    ),
}
COMMAND = CommandGroup("blip-hf finetune", COMMANDS)

__all__ = ["COMMAND", "COMMANDS"]
