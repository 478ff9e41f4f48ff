# SPDX-License-Identifier: BSD-3-Clause
"""How learning rate and `alpha` depend on the optimiser step: pure functions."""

import math


def blip_learning_rate(
    step: int,
    *,
    steps_per_epoch: int,
    learning_rate: float,
    min_learning_rate: float,
    decay_rate: float,
    warmup_steps: int,
    warmup_learning_rate: float,
) -> float:
    """Learning rate of a step: linear warm-up, and a constant factor from each epoch to the next.

    As in salesforce/BLIP (`utils.py`), epoch `e` has `max(min_learning_rate, learning_rate * decay_rate**e)`. The
    original warms up during its first epoch only and jumps if that is shorter than the warm-up; here the ramp goes on
    until `warmup_steps`, below the rate of the epoch.

    Args:
        step (`int`):
            Optimiser steps taken before this one.
        steps_per_epoch (`int`):
            Optimiser steps of an epoch.
        learning_rate (`float`):
            The rate of the first epoch.
        min_learning_rate (`float`):
            Where the decay ends.
        decay_rate (`float`):
            Factor from one epoch to the next.
        warmup_steps (`int`):
            Length of the warm-up, 0 for none.
        warmup_learning_rate (`float`):
            The rate of the first step of a warm-up.

    Returns:
        `float`: The learning rate.

    Example:
        >>> recipe = dict(learning_rate=3e-4, min_learning_rate=1e-6, decay_rate=0.9)
        >>> blip_learning_rate(250, steps_per_epoch=100, warmup_steps=0, warmup_learning_rate=1e-6, **recipe)
        0.000243
    """
    decayed = max(min_learning_rate, learning_rate * decay_rate ** (step // steps_per_epoch))
    return _warmed_up(decayed, step, learning_rate, warmup_steps, warmup_learning_rate)


def cosine_learning_rate(
    step: int,
    *,
    steps_per_epoch: int,
    num_epochs: int,
    learning_rate: float,
    min_learning_rate: float,
    warmup_steps: int,
    warmup_learning_rate: float,
) -> float:
    """Learning rate of a step of fine-tuning: half a cosine over the run, one value an epoch (salesforce/BLIP `utils.py`).

    Args:
        step (`int`):
            Optimiser steps taken before this one.
        steps_per_epoch (`int`):
            Optimiser steps of an epoch.
        num_epochs (`int`):
            Epochs of the run.
        learning_rate (`float`):
            The rate of the first epoch.
        min_learning_rate (`float`):
            What the rate approaches; the last epoch is still above it.
        warmup_steps (`int`):
            Length of the warm-up, 0 for none, as in the original.
        warmup_learning_rate (`float`):
            The rate of the first step of a warm-up.

    Returns:
        `float`: The learning rate.

    Example:
        >>> recipe = dict(learning_rate=1e-5, min_learning_rate=0.0, warmup_steps=0, warmup_learning_rate=0.0)
        >>> cosine_learning_rate(350, steps_per_epoch=100, num_epochs=6, **recipe)
        5e-06
    """
    epoch = step // steps_per_epoch
    share = (1 + math.cos(math.pi * epoch / num_epochs)) / 2
    decayed = min_learning_rate + (learning_rate - min_learning_rate) * share
    return _warmed_up(decayed, step, learning_rate, warmup_steps, warmup_learning_rate)


def linear_ramp(step: int, num_steps: float) -> float:
    """Share of its full value that something ramped up over the first `num_steps` steps has, in [0, 1].

    Args:
        step (`int`):
            Steps taken so far.
        num_steps (`float`):
            Length of the ramp; 0 for the full value from the start.

    Returns:
        `float`: The share.

    Example:
        >>> [linear_ramp(step, 4) for step in (0, 1, 4, 9)]
        [0.0, 0.25, 1.0, 1.0]
    """
    return 1.0 if step >= num_steps else step / num_steps


def _warmed_up(
    decayed: float, step: int, learning_rate: float, warmup_steps: int, warmup_learning_rate: float
) -> float:
    if step >= warmup_steps:
        return decayed
    return min(decayed, warmup_learning_rate + (learning_rate - warmup_learning_rate) * step / warmup_steps)


__all__ = ["blip_learning_rate", "cosine_learning_rate", "linear_ramp"]
