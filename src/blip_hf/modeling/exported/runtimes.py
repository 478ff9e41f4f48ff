# SPDX-License-Identifier: BSD-3-Clause
"""The two runtimes by the name of their format."""

import importlib
import sys
from pathlib import Path
from typing import Protocol

from torch import Tensor


FORMATS = ("openvino", "onnx")
_PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",)}
_EXTRAS = {"onnx": "export", "openvino": "openvino"}


class Runtime(Protocol):
    """A graph that is ready to run on the CPU."""

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Outputs for inputs in the order of the graph. They stay valid after the next call."""


def open_graph(format: str, name: str, path: Path, precision: str) -> Runtime:
    """Opens the graph `name` at a path without suffix. Uses as many threads as torch does now.

    Raises:
        ImportError: If the runtime is not installed.
        ValueError: If the file is missing or damaged.
    """
    require_packages(format)
    try:
        return _open(format, name, path, precision)
    except Exception as error:  # each runtime has errors of its own
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"The graph {path} cannot be opened: {reason} Export the model again.") from error


def _open(format: str, name: str, path: Path, precision: str) -> Runtime:
    if format == "openvino":
        from .openvino_runtime import OpenVinoGraph

        return OpenVinoGraph(name, path, precision)
    from .onnx_runtime import OnnxGraph

    return OnnxGraph(path)


def require_packages(format: str) -> None:
    """Raises `ValueError` for an unknown format, and `ImportError` if its packages are not installed."""
    if format not in FORMATS:
        raise ValueError(f"The format is {format!r}. Pass one of {', '.join(FORMATS)}.")
    # Without this package, OpenVINO sends no usage statistics. It would fork a process for each event.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None refuses its import
    for package in _PACKAGES[format]:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(
                f"The format {format} needs {package}. Install it with `pip install blip_hf[{_EXTRAS[format]}]`."
            ) from error


__all__ = ["FORMATS", "Runtime", "open_graph", "require_packages"]
