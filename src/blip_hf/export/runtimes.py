# SPDX-License-Identifier: BSD-3-Clause
"""The two runtimes by the name of their format."""

import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from .graphs import Graph


FORMATS = ("openvino", "onnx")
_PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",)}
_EXTRAS = {"onnx": "export", "openvino": "openvino"}


class Runtime(Protocol):
    """A graph that is ready to run on the CPU."""

    memory_dtype: torch.dtype
    """The dtype of keys and values."""

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Outputs for inputs in the order of the graph."""


def precisions(format: str) -> tuple[str, ...]:
    """The precisions that a format has."""
    return _module(format).PRECISIONS


def write_graph(
    format: str, name: str, graph: Graph, path: Path, precision: str, calibration: Iterable[Sequence[Tensor]]
) -> None:
    """Writes a graph to the files `path` with the suffixes of the format."""
    _module(format).write_graph(name, graph, path, precision, calibration)


def open_graph(format: str, name: str, path: Path, precision: str) -> Runtime:
    """Opens a graph that `write_graph` wrote. Uses as many threads as torch does now."""
    module = _module(format)
    return (module.OpenVinoGraph if format == "openvino" else module.OnnxGraph)(name, path, precision)


def _module(format: str) -> ModuleType:
    if format not in FORMATS:
        raise ValueError(f"The format is {format!r}. Pass one of {', '.join(FORMATS)}.")
    for package in _PACKAGES[format]:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(
                f"The format {format} needs {package}. Install it with `pip install blip_hf[{_EXTRAS[format]}]`."
            ) from error
    return importlib.import_module(f".{format}", __package__)


__all__ = ["FORMATS", "Runtime", "open_graph", "precisions", "write_graph"]
