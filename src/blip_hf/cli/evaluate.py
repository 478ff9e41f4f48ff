# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf evaluate`: evaluates a model on one task, as the paper does."""

from functools import partial
from types import ModuleType

from ..files import format_json
from ..tasks import base, caption, nlvr2, retrieval, vqa
from .parser import Command, CommandGroup


def _run(task: ModuleType, options: base.EvaluateOptions) -> None:
    print(format_json(task.evaluate(options)))


def _command(name: str, task: ModuleType, description: str) -> Command:
    return Command(
        prog=f"blip-hf evaluate {name}",
        description=description,
        options=task.EvaluateOptions,
        run=partial(_run, task),
    )


COMMANDS = {
    "caption": _command("caption", caption, "Captions images and compares with human captions"),
    "retrieval": _command("retrieval", retrieval, "Ranks captions and images in two stages"),
    "vqa": _command("vqa", vqa, "Answers questions, by ranking a list of answers or by generating"),
    "nlvr2": _command("nlvr2", nlvr2, "Decides whether sentences are true of two images"),
}
COMMAND = CommandGroup("blip-hf evaluate", COMMANDS)

__all__ = ["COMMAND", "COMMANDS"]
