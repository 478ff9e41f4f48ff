# SPDX-License-Identifier: BSD-3-Clause
"""Picks the device that models run on, and draws samples by a seed."""

import os
import platform
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """Returns the given device, or by default the accelerator of this process (CUDA, XPU, MPS, ...), else the CPU.

    Of several accelerators, each process of `torchrun` gets its own by `LOCAL_RANK`.

    Raises:
        ValueError: If this machine does not have the given device.
    """
    if device is not None:
        return _check(device)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return torch.device("cpu")
    if "LOCAL_RANK" not in os.environ:
        return torch.device(accelerator.type)
    return torch.device(accelerator.type, int(os.environ["LOCAL_RANK"]) % torch.accelerator.device_count())


def _check(device: str | torch.device) -> torch.device:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        # The rest of a CUDA message is advice about kernels.
        reason = str(error).splitlines()[0].rstrip(".")
        usable = " or ".join(sorted({"'cpu'", f"'{pick_device()}'"}))
        raise ValueError(f"device='{device}' cannot be used: {reason}. Leave it out, or pass {usable}.") from error
    return torch.device(device)


def describe_device(device: torch.device, num_processes: int = 1) -> str:
    """Names a device for a report, with the number of processes that use one each.

    Example:
        >>> describe_device(torch.device("cpu")).split(",")[0]
        'CPU'
    """
    if device.type == "cpu":
        name = f"CPU, {platform.machine()}, {torch.get_num_threads()} threads"
    else:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return name if num_processes == 1 else f"{num_processes} x {name}"


class SeededSampling(TorchFunctionMode):
    """Within the block, `torch.multinomial` draws from a generator of this block alone.

    `generate` of transformers has no argument for a generator. The mode belongs to its thread, so that others neither change
    the draws nor see them, and the global generators keep their state.

    Args:
        seed (`int`):
            Seed of the generator.
        device (`torch.device`):
            Device of the probabilities.

    Example:
        >>> import torch
        >>> with SeededSampling(0, torch.device("cpu")):
        ...     draws = torch.ones(8).multinomial(3)
        >>> with SeededSampling(0, torch.device("cpu")):
        ...     torch.equal(torch.ones(8).multinomial(3), draws)
        True
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        super().__init__()
        self.generator = torch.Generator(device).manual_seed(seed)

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Adds the generator to the call."""
        kwargs = kwargs or {}
        if func in (torch.multinomial, torch.Tensor.multinomial):
            kwargs = {**kwargs, "generator": self.generator}
        return func(*args, **kwargs)


__all__ = ["SeededSampling", "describe_device", "pick_device"]
