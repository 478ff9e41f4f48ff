# SPDX-License-Identifier: BSD-3-Clause
"""Traces of graphs, which hold for other sizes than those of the example inputs (`tests/modeling/test_export.py`)."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.utils import logging


@contextmanager
def tracing() -> Iterator[None]:
    """Without gradients, and without warnings about conditions that are the same at all sizes."""
    with _transformers_errors_only(), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", category=UserWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


@contextmanager
def _transformers_errors_only() -> Iterator[None]:
    # Tracers read all attributes of a model; `loss_function` then warns about `loss_type`.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


__all__ = ["tracing"]
