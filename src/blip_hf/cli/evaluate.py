# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf evaluate`: measures a model at one task, as the paper does."""

import json
import sys
from collections.abc import Sequence
from importlib import import_module

from ..tasks.options import (
    CaptionEvaluateOptions,
    Nlvr2EvaluateOptions,
    RetrievalEvaluateOptions,
    VqaEvaluateOptions,
)
from .finetune import MODULES
from .options import Command, parse_task


def _command(task: str, description: str, options: type) -> Command:
    usage = "--model CHECKPOINT --data SOURCE [SOURCE ...]"
    return Command(prog=f"blip-hf evaluate {task}", description=description, options=options, usage=usage)


COMMANDS = {
    "caption": _command("caption", "Captions images and compares with people's captions.", CaptionEvaluateOptions),
    "retrieval": _command("retrieval", "Ranks captions and images in two stages.", RetrievalEvaluateOptions),
    "vqa": _command("vqa", "Answers questions, by ranking a list of answers or by writing.", VqaEvaluateOptions),
    "nlvr2": _command("nlvr2", "Judges sentences about two images.", Nlvr2EvaluateOptions),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates, and prints the metrics as JSON.

    Args:
        argv (`Sequence[str]`, *optional*):
            The task, and its arguments. Those of the process by default.

    Returns:
        `int`: 0.
    """
    parsed = parse_task("blip-hf evaluate", COMMANDS, sys.argv[1:] if argv is None else argv)
    if parsed is None:
        return 0
    task, options = parsed
    metrics = import_module(f"..tasks.{MODULES[task]}", __package__).evaluate(*options)
    print(json.dumps(metrics))
    return 0


__all__ = ["COMMANDS", "main"]
