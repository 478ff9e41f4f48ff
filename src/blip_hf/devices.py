# SPDX-License-Identifier: BSD-3-Clause
"""Picks the device that models run on, and seeds it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """Returns the given device, or by default the accelerator of this process (CUDA, XPU, MPS, ...), else the CPU.

    Of several accelerators, each process of `torchrun` gets its own by `LOCAL_RANK`.

    Raises:
        ValueError: If this machine does not have the given device.
    """
    if device is not None:
        return _check(device)
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator().type
    if "LOCAL_RANK" not in os.environ:
        return torch.device(kind)
    return torch.device(kind, int(os.environ["LOCAL_RANK"]) % torch.accelerator.device_count())


def _check(device: str | torch.device) -> torch.device:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        # The rest of a CUDA message is advice about kernels.
        reason = str(error).splitlines()[0].rstrip(".")
        usable = " or ".join(sorted({"'cpu'", f"'{pick_device()}'"}))
        raise ValueError(f"device='{device}' cannot be used: {reason}. Leave it out, or pass {usable}.") from error
    return torch.device(device)


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seeds the CPU and the device, and restores their random state at the end. Does nothing if `seed` is `None`."""
    forked = [device] if device.type in ("cuda", "xpu") else []
    # `fork_rng` does not support the MPS device.
    mps_state = torch.mps.get_rng_state() if device.type == "mps" and seed is not None else None
    try:
        with torch.random.fork_rng(forked, device_type=device.type if forked else "cuda", enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            yield
    finally:
        if mps_state is not None:
            torch.mps.set_rng_state(mps_state)


__all__ = ["pick_device", "seeded"]
