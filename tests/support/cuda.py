# SPDX-License-Identifier: BSD-3-Clause
"""Marks and comparisons of the tests that need a CUDA device."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


NEEDS_CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.usefixtures("_without_tf32"),
]
# fp32; other kernels sum in another order.
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


def on_cuda(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cuda() for name, value in batch.items()}


def assert_never_waits(step: Callable[[], None]) -> None:
    """Asserts that a step does not synchronize with the device, after a first one."""
    step()  # loads kernels and allocates memory
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
