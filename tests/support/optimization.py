# SPDX-License-Identifier: BSD-3-Clause
"""Gradients, and a plain training loop."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def gradients_of(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def optimize(
    model: nn.Module,
    step_loss: Callable[[], Tensor],
    num_steps: int,
    lr: float = 5e-3,
    after_step: Callable[[], None] = lambda: None,
) -> nn.Module:
    """Minimizes `step_loss` by AdamW with a linear decay; returns the model in evaluation mode."""
    model.train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=num_steps)
    for _ in range(num_steps):
        optimizer.zero_grad()
        step_loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        after_step()
    return model.eval()
