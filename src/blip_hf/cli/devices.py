# SPDX-License-Identifier: BSD-3-Clause
"""Check of the `--device` of a command."""

from .errors import UsageError


def check_device(device: str | None) -> None:
    """Raises if torch cannot use a device."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        # The rest of a CUDA message is advice about kernels.
        reason = str(error).splitlines()[0].rstrip(".")
        raise UsageError(f"--device {device} cannot be used: {reason}. Leave it out, or pass cpu.") from error


__all__ = ["check_device"]
