# SPDX-License-Identifier: BSD-3-Clause
"""Writes graphs by the name of their format."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from torch import Tensor

from ..modeling.exported.runtimes import require_packages
from . import onnx_writer, openvino_writer
from .graphs import Graph


def precisions(format: str) -> tuple[str, ...]:
    """The precisions that a format has."""
    return _writer(format).PRECISIONS


def write_graph(
    format: str, name: str, graph: Graph, path: Path, precision: str, calibration: Iterable[Sequence[Tensor]]
) -> None:
    """Writes a graph to the files `path` with the suffixes of the format."""
    _writer(format).write_graph(name, graph, path, precision, calibration)


def _writer(format: str) -> ModuleType:
    require_packages(format)
    return openvino_writer if format == "openvino" else onnx_writer


__all__ = ["precisions", "write_graph"]
