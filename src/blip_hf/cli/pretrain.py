# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf pretrain`: pre-trains BLIP with its three objectives, from scratch or from a ViT and a BERT."""

import json
import sys
from collections.abc import Sequence

from ..tasks.options import PretrainOptions
from .options import Command, parse_options


def _trainer_arguments() -> type:
    from ..training import BlipTrainingArguments

    return BlipTrainingArguments


COMMAND = Command(
    prog="blip-hf pretrain",
    description="Pre-trains BLIP with its three objectives.",
    options=PretrainOptions,
    usage="--data SOURCE [SOURCE ...]",
    trainer_arguments=_trainer_arguments,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Pre-trains, evaluates and saves.

    The output folder then holds the model and its processor, and in `captioner/` and `retriever/` the two models inside
    as plain transformers opens them.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments after the name of the command. Those of the process by default.

    Returns:
        `int`: 0.
    """
    parsed = parse_options(COMMAND, sys.argv[1:] if argv is None else argv)
    if parsed is None:
        return 0
    from ..tasks.pretrain import pretrain

    options, training_arguments = parsed
    metrics = pretrain(options, training_arguments)
    if training_arguments.process_index == 0:
        print(json.dumps(metrics))
    return 0


__all__ = ["COMMAND", "main"]
