# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf pretrain`: pre-trains BLIP with its three objectives, from scratch or from a ViT and a BERT."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..tasks.pretrain import PretrainOptions, pretrain
from .parser import Command


if TYPE_CHECKING:
    from ..training import BlipTrainingArguments


def _trainer_arguments() -> tuple[type, Mapping[str, Any]]:
    from ..training import BlipTrainingArguments

    return BlipTrainingArguments, {}


def _run(options: PretrainOptions, arguments: "BlipTrainingArguments") -> None:
    metrics = pretrain(options, arguments)
    if arguments.process_index == 0:
        print(json.dumps(metrics, indent=2 if options.dry_run else None, default=str))


COMMAND = Command(
    prog="blip-hf pretrain",
    description="Pre-trains BLIP with its three objectives. The output folder holds the model and its processor, and in"
    " captioner/ and retriever/ the two models inside it, which plain transformers opens too.",
    options=PretrainOptions,
    run=_run,
    trainer_arguments=_trainer_arguments,
)

__all__ = ["COMMAND"]
