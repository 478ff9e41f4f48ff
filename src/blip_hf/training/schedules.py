# SPDX-License-Identifier: BSD-3-Clause
"""Learning rate, `alpha` and momentum as functions of the optimiser step."""

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
    """Learning rate of pre-training: linear warm-up, and a constant factor from each epoch to the next.

    As in salesforce/BLIP (`utils.py`), epoch `e` has `max(min_learning_rate, learning_rate * decay_rate**e)`. Unlike
    there, the warm-up lasts `warmup_steps` even if they exceed the first epoch, and stays below the rate of the epoch.

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
    """Learning rate of fine-tuning: half a cosine over the run, one value per epoch (salesforce/BLIP `utils.py`).

    Example:
        >>> recipe = dict(learning_rate=1e-5, min_learning_rate=0.0, warmup_steps=0, warmup_learning_rate=0.0)
        >>> cosine_learning_rate(350, steps_per_epoch=100, num_epochs=6, **recipe)
        5e-06
    """
    epoch = step // steps_per_epoch
    fraction = (1 + math.cos(math.pi * epoch / num_epochs)) / 2
    decayed = min_learning_rate + (learning_rate - min_learning_rate) * fraction
    return _warmed_up(decayed, step, learning_rate, warmup_steps, warmup_learning_rate)


def linear_ramp(step: int, num_steps: float) -> float:
    """Rises linearly from 0 to 1 over the first `num_steps` steps; 1 from the start if that is 0.

    Example:
        >>> [linear_ramp(step, 4) for step in (0, 1, 4, 9)]
        [0.0, 0.25, 1.0, 1.0]
    """
    return 1.0 if step >= num_steps else step / num_steps


def momentum_at(step: int, momentum: float, warmup_steps: int) -> float:
    """Momentum of the update after optimiser step `step`, counted from 1.

    In a warm-up it is 0, so the momentum encoder equals the model. Then it rises as `n / (n + 1)`, which makes the momentum
    encoder the mean of the weights since the warm-up, until it reaches `momentum`.

    Example:
        >>> [momentum_at(step, 0.75, warmup_steps=100) for step in (100, 101, 102, 103, 104)]
        [0.0, 0.5, 0.6666666666666666, 0.75, 0.75]
        >>> momentum_at(1, 0.75, warmup_steps=0)
        0.75
    """
    if not warmup_steps:
        return momentum
    settled = max(0, step - warmup_steps)
    return min(momentum, settled / (settled + 1))


def _warmed_up(
    decayed: float, step: int, learning_rate: float, warmup_steps: int, warmup_learning_rate: float
) -> float:
    if step >= warmup_steps:
        return decayed
    return min(decayed, warmup_learning_rate + (learning_rate - warmup_learning_rate) * step / warmup_steps)


__all__ = ["blip_learning_rate", "cosine_learning_rate", "linear_ramp", "momentum_at"]
