# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf evaluate`: evaluates a model on one task, as the paper does."""

import json
from functools import partial
from importlib import import_module

from ..tasks.options import (
    CaptionEvaluateOptions,
    EvaluateOptions,
    Nlvr2EvaluateOptions,
    RetrievalEvaluateOptions,
    VqaEvaluateOptions,
)
from .parser import Command, CommandGroup


def _run(task: str, options: EvaluateOptions) -> None:
    print(json.dumps(import_module(f"..tasks.{task}", __package__).evaluate(options)))


def _command(task: str, description: str, options: type) -> Command:
    return Command(prog=f"blip-hf evaluate {task}", description=description, options=options, run=partial(_run, task))


COMMANDS = {
    "caption": _command("caption", "Captions images and compares with human captions", CaptionEvaluateOptions),
    "retrieval": _command("retrieval", "Ranks captions and images in two stages", RetrievalEvaluateOptions),
    "vqa": _command("vqa", "Answers questions, by ranking a list of answers or by generating", VqaEvaluateOptions),
    "nlvr2": _command("nlvr2", "Decides whether sentences are true of two images", Nlvr2EvaluateOptions),
}
COMMAND = CommandGroup("blip-hf evaluate", COMMANDS)

__all__ = ["COMMAND", "COMMANDS"]
