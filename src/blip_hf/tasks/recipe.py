# SPDX-License-Identifier: BSD-3-Clause
"""What pre-training does where its options leave it open: the paper's recipe, or one that learns in a short run."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..training import BlipTrainingArguments
    from .pretrain import PretrainOptions


# docs/short_runs.md gives the reason or the measurement for each value.
# Optimiser steps from which on a run has the paper's recipe.
MIN_PAPER_STEPS = 10_000
# Steps from which on a momentum encoder and a queue learn more than the keys of the batch alone.
MIN_QUEUE_STEPS = 500
# Steps at the start of such a run in which the batch alone gives the keys.
QUEUE_WARMUP_STEPS = 300
# The paper has a queue of 57,600 pairs and batches of 2,880.
QUEUE_BATCHES = 20
# For a model whose temperature and ITM head are not trained yet.
SHORT_OPTIONS: dict[str, Any] = {"temperature": 0.05, "negative_temperature": 0.1}
SHORT_ARGUMENTS: dict[str, Any] = {
    "learn_temperature": False,
    "lr_scheduler_type": "cosine",
    "max_grad_norm": 1.0,
}
BATCH_SIZE = 64
# Learning rate for trained encoders.
WARM_START_RATE = 1e-4
# Share of a run without a queue in which hard negatives get harder.
NEGATIVE_WARMUP = 0.2
# Share of a run in which the learning rate rises.
RATE_WARMUP = 0.05


@dataclass(frozen=True)
class Recipe:
    """Values of options and of arguments that are not given; empty for the paper's recipe."""

    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, options: "PretrainOptions", arguments: "BlipTrainingArguments") -> "PretrainOptions":
        """Sets the values of the arguments, and returns the options with theirs."""
        for name, value in self.arguments.items():
            setattr(arguments, name, value)
        return replace(options, **self.options)


def choose_recipe(options: "PretrainOptions", arguments: "BlipTrainingArguments", num_pairs: int | None) -> Recipe:
    """Chooses values that are not given by the length of the run, and prints them.

    Options are not given if they are `None`, arguments if the command line leaves them out. If the queue or the momentum is
    given, nothing is chosen. `num_pairs` is the size of the training set, `None` for a stream of unknown length.
    """
    if options.queue_size is not None or options.momentum is not None:
        return Recipe()
    chosen_arguments = {name: value for name, value in SHORT_ARGUMENTS.items() if name in arguments.left_open}
    batch_size = arguments.per_device_train_batch_size
    if "per_device_train_batch_size" in arguments.left_open:
        batch_size = chosen_arguments["per_device_train_batch_size"] = _choose_batch_size(arguments, num_pairs)
    num_steps = count_steps(arguments, batch_size, num_pairs)
    if not num_steps or num_steps >= MIN_PAPER_STEPS:
        return Recipe()
    chosen = _choose_keys(num_steps, _rows_per_step(arguments, batch_size))
    # A model that is trained on has a temperature and an ITM head.
    chosen |= SHORT_OPTIONS if options.model is None else {"contrastive_warmup_steps": 0}
    if "learning_rate" in arguments.left_open and (options.model or options.vision or options.text):
        chosen_arguments["learning_rate"] = WARM_START_RATE
    if "warmup_steps" in arguments.left_open:
        chosen_arguments["warmup_steps"] = max(1, int(RATE_WARMUP * num_steps))
    recipe = Recipe(
        {name: value for name, value in chosen.items() if getattr(options, name) is None}, chosen_arguments
    )
    if arguments.process_index == 0:
        _print_choice(recipe, num_steps)
    return recipe


def _choose_batch_size(arguments: "BlipTrainingArguments", num_pairs: int | None) -> int:
    """Returns the batch size for a short run: smaller if the training set does not fill a step, but not below the default."""
    default = arguments.per_device_train_batch_size
    largest = BATCH_SIZE if num_pairs is None else num_pairs // _rows_per_step(arguments, 1)
    return min(BATCH_SIZE, max(default, largest))


def _choose_keys(num_steps: int, num_rows: int) -> dict[str, Any]:
    from ..configuration_blip import BlipPreTrainingConfig

    if num_steps < MIN_QUEUE_STEPS:
        return {"queue_size": 0, "momentum": 0.0, "contrastive_warmup_steps": int(NEGATIVE_WARMUP * num_steps)}
    queue_size = min(QUEUE_BATCHES * num_rows, BlipPreTrainingConfig.queue_size)
    return {"queue_size": queue_size, "contrastive_warmup_steps": QUEUE_WARMUP_STEPS}


def count_steps(arguments: "BlipTrainingArguments", batch_size: int, num_pairs: int | None) -> int | None:
    """Optimiser steps of a run, or `None` if they are unknown."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    if num_pairs is None:
        return None
    return int(arguments.num_train_epochs * (num_pairs // _rows_per_step(arguments, batch_size)))


def _rows_per_step(arguments: "BlipTrainingArguments", batch_size: int) -> int:
    return batch_size * max(1, arguments.n_gpu) * arguments.gradient_accumulation_steps * arguments.world_size


def _print_choice(recipe: Recipe, num_steps: int) -> None:
    from transformers.utils import logging

    values = " ".join(f"--{name} {value}" for name, value in {**recipe.options, **recipe.arguments}.items())
    logging.get_logger(__name__).warning(
        f"The run has {num_steps:,} optimizer steps; the paper's recipe is for {MIN_PAPER_STEPS:,} and more. Options that are not"
        f" given have these values: {values}. Pass an option to change its value."
    )


__all__ = ["MIN_PAPER_STEPS", "Recipe", "choose_recipe", "count_steps"]
