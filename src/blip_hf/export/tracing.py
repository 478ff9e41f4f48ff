# SPDX-License-Identifier: BSD-3-Clause
"""Traces of graphs, which hold for other sizes than those of the example inputs (`tests/modeling/test_export.py`)."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tracing() -> Iterator[None]:
    """Without gradients, and without warnings about conditions that are the same at all sizes."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", category=UserWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


__all__ = ["tracing"]
