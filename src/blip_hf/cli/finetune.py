# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf finetune`: fine-tunes a model for one task, with the paper's settings for it as defaults."""

import json
from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..tasks import base, caption, nlvr2, retrieval, vqa
from .parser import Command, CommandGroup


if TYPE_CHECKING:
    from ..training import BlipFinetuningArguments


def _trainer_arguments(task: str) -> tuple[type, Mapping[str, Any]]:
    from ..training.arguments import TASK_RECIPES, BlipFinetuningArguments

    return BlipFinetuningArguments, TASK_RECIPES[task]


def _run(task: ModuleType, options: base.FinetuneOptions, arguments: "BlipFinetuningArguments") -> None:
    metrics = task.finetune(options, arguments)
    if arguments.process_index == 0:
        print(json.dumps(metrics, indent=2 if options.dry_run else None, default=str))


def _command(name: str, task: ModuleType, description: str) -> Command:
    return Command(
        prog=f"blip-hf finetune {name}",
        description=description,
        options=task.FinetuneOptions,
        run=partial(_run, task),
        trainer_arguments=partial(_trainer_arguments, name),
    )


COMMANDS = {
    "caption": _command("caption", caption, "Fine-tunes a captioner"),
    "retrieval": _command(
        "retrieval", retrieval, "Fine-tunes a model for retrieval, with the contrastive and ITM losses"
    ),
    "vqa": _command("vqa", vqa, "Fine-tunes a model that answers questions about images"),
    "nlvr2": _command("nlvr2", nlvr2, "Fine-tunes a model that decides whether a sentence is true of two images"),
}
COMMAND = CommandGroup("blip-hf finetune", COMMANDS)

__all__ = ["COMMAND", "COMMANDS"]
