# SPDX-License-Identifier: BSD-3-Clause
"""What pre-training does where its options leave it open: the paper's recipe, or one that learns in a short run."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..training import BlipTrainingArguments
    from .pretrain import PretrainOptions


# Optimiser steps from which on a run has the paper's recipe (docs/short_runs.md).
MIN_PAPER_STEPS = 10_000
# Steps from which on a run learns more with momentum encoder and queue than with the keys of the batch alone, if the batch
# alone has the first ones: before, the age of a queued key gives it away.
MIN_QUEUE_STEPS = 500
QUEUE_WARMUP_STEPS = 300
# Batches in the queue: the paper has 57,600 pairs and batches of 2,880.
QUEUE_BATCHES = 20
MAX_QUEUE_SIZE = 57_600
MOMENTUM = 0.995
# A learned temperature falls before the features have an order. An ITM head at chance learns nothing from hard negatives.
SHORT_OPTIONS: dict[str, Any] = {"temperature": 0.05, "negative_temperature": 0.1}
SHORT_ARGUMENTS: dict[str, Any] = {
    "learn_temperature": False,
    "lr_scheduler_type": "cosine",
    "max_grad_norm": 1.0,
    "per_device_train_batch_size": 64,
}
# Trained encoders lose what they know at the paper's 3e-4.
WARM_START_RATE = 1e-4
# Shares of a run without a queue in which the negatives get harder, and of any run in which the learning rate rises.
NEGATIVE_WARMUP = 0.2
RATE_WARMUP = 0.05


@dataclass(frozen=True)
class Recipe:
    """Values of options and of arguments that were left open; none for a run with the paper's recipe."""

    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, options: "PretrainOptions", arguments: "BlipTrainingArguments") -> "PretrainOptions":
        """Sets the values of the arguments, and returns the options with theirs."""
        for name, value in self.arguments.items():
            setattr(arguments, name, value)
        return replace(options, **self.options)


def choose_recipe(options: "PretrainOptions", arguments: "BlipTrainingArguments", num_pairs: int | None) -> Recipe:
    """Chooses what is left open by the length of the run, and says what.

    Options are open if they are `None`, arguments if the command line does not give them. A run with a queue or a momentum of
    its own has a recipe of its own. `num_pairs` is the size of the training set, `None` for a stream of unknown length.
    """
    if options.queue_size is not None or options.momentum is not None:
        return Recipe()
    open_arguments = {name: value for name, value in SHORT_ARGUMENTS.items() if name in arguments.left_open}
    batch_size = open_arguments.get("per_device_train_batch_size", arguments.per_device_train_batch_size)
    num_steps = count_steps(arguments, batch_size, num_pairs)
    if num_steps is None or num_steps >= MIN_PAPER_STEPS:
        return Recipe()
    chosen = {**SHORT_OPTIONS, **_choose_keys(num_steps, _rows_per_step(arguments, batch_size))}
    if options.model is not None:
        chosen["contrastive_warmup_steps"] = 0
    if "learning_rate" in arguments.left_open and (options.model or options.vision or options.text):
        open_arguments["learning_rate"] = WARM_START_RATE
    if "warmup_steps" in arguments.left_open:
        open_arguments["warmup_steps"] = max(1, int(RATE_WARMUP * num_steps))
    recipe = Recipe({name: value for name, value in chosen.items() if getattr(options, name) is None}, open_arguments)
    if arguments.process_index == 0:
        _announce(recipe, num_steps)
    return recipe


def _choose_keys(num_steps: int, num_rows: int) -> dict[str, Any]:
    if num_steps < MIN_QUEUE_STEPS:
        return {"queue_size": 0, "momentum": 0.0, "contrastive_warmup_steps": int(NEGATIVE_WARMUP * num_steps)}
    queue_size = min(QUEUE_BATCHES * num_rows, MAX_QUEUE_SIZE)
    return {"queue_size": queue_size, "momentum": MOMENTUM, "contrastive_warmup_steps": QUEUE_WARMUP_STEPS}


def count_steps(arguments: "BlipTrainingArguments", batch_size: int, num_pairs: int | None) -> int | None:
    """Optimiser steps of a run, or `None` if they are unknown."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    if num_pairs is None:
        return None
    return int(arguments.num_train_epochs * (num_pairs // _rows_per_step(arguments, batch_size)))


def _rows_per_step(arguments: "BlipTrainingArguments", batch_size: int) -> int:
    return batch_size * max(1, arguments.n_gpu) * arguments.gradient_accumulation_steps * arguments.world_size


def _announce(recipe: Recipe, num_steps: int) -> None:
    from transformers.utils import logging

    values = " ".join(f"--{name} {value}" for name, value in {**recipe.options, **recipe.arguments}.items())
    logging.get_logger(__name__).warning(
        f"The run has {num_steps:,} steps, fewer than the {MIN_PAPER_STEPS:,} from which on the paper's recipe is chosen."
        f" Chosen instead: {values}. Pass other values to overrule these."
    )


__all__ = ["MIN_PAPER_STEPS", "SHORT_ARGUMENTS", "SHORT_OPTIONS", "Recipe", "choose_recipe", "count_steps"]
