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
# The age of a queued key gives it away until a momentum encoder has settled. A learned temperature falls before the
# features have an order. An ITM head at chance learns nothing from hard negatives.
SHORT_OPTIONS: dict[str, Any] = {
    "queue_size": 0,
    "momentum": 0.0,
    "temperature": 0.05,
    "negative_temperature": 0.1,
}
SHORT_ARGUMENTS: dict[str, Any] = {
    "learn_temperature": False,
    "lr_scheduler_type": "cosine",
    "max_grad_norm": 1.0,
    "per_device_train_batch_size": 64,
}
# Trained encoders lose what they know at the paper's 3e-4.
WARM_START_RATE = 1e-4
# Shares of the run in which the negatives get harder, and the learning rate rises.
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
    if options.model is None:
        chosen = {**SHORT_OPTIONS, "contrastive_warmup_steps": int(NEGATIVE_WARMUP * num_steps)}
    else:
        chosen = SHORT_OPTIONS
    if "learning_rate" in arguments.left_open and (options.model or options.vision or options.text):
        open_arguments["learning_rate"] = WARM_START_RATE
    if "warmup_steps" in arguments.left_open:
        open_arguments["warmup_steps"] = max(1, int(RATE_WARMUP * num_steps))
    recipe = Recipe({name: value for name, value in chosen.items() if getattr(options, name) is None}, open_arguments)
    if arguments.process_index == 0:
        _announce(recipe, num_steps)
    return recipe


def count_steps(arguments: "BlipTrainingArguments", batch_size: int, num_pairs: int | None) -> int | None:
    """Optimiser steps of a run, or `None` if they are unknown."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    if num_pairs is None:
        return None
    num_rows = batch_size * max(1, arguments.n_gpu) * arguments.gradient_accumulation_steps * arguments.world_size
    return int(arguments.num_train_epochs * (num_pairs // num_rows))


def _announce(recipe: Recipe, num_steps: int) -> None:
    from transformers.utils import logging

    values = " ".join(f"--{name} {value}" for name, value in {**recipe.options, **recipe.arguments}.items())
    logging.get_logger(__name__).warning(
        f"The run has {num_steps:,} steps, fewer than the {MIN_PAPER_STEPS:,} from which on the paper's recipe is chosen."
        f" Chosen instead: {values}. Pass other values to overrule these."
    )


__all__ = ["MIN_PAPER_STEPS", "SHORT_ARGUMENTS", "SHORT_OPTIONS", "Recipe", "choose_recipe", "count_steps"]
