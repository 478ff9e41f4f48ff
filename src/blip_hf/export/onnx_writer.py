# SPDX-License-Identifier: BSD-3-Clause
"""Writes and quantises graphs in the ONNX format."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..modeling.exported.graph_names import IMAGE_ENCODER, IMAGE_MEMORY
from ..modeling.exported.onnx_runtime import SUFFIX
from .graphs import Graph
from .tracing import tracing


PRECISIONS = ("fp32", "fp16", "int8")
OPSET = 18

_CALIBRATED = (IMAGE_ENCODER, IMAGE_MEMORY)


def write_graph(name: str, graph: Graph, path: Path, precision: str, calibration: Iterable[Sequence[Tensor]]) -> None:
    """Traces a graph and saves it. `calibration` are inputs of a graph that is quantised with its activations."""
    path = path.with_suffix(SUFFIX)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        traced = path if precision == "fp32" else Path(folder, "traced.onnx")
        _trace(graph, traced)
        if precision == "fp16":
            _halve(traced, path)
        elif precision == "int8":
            _quantize(name, list(graph.inputs), traced, path, calibration)


def _trace(graph: Graph, path: Path) -> None:
    with tracing():
        # The newer exporter needs minutes for the product of texts and images in the decoder.
        torch.onnx.export(
            graph.module,
            tuple(graph.inputs.values()),
            path,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_axes=graph.axes,
            opset_version=OPSET,
            dynamo=False,
        )


def _halve(traced: Path, path: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(traced), keep_io_types=True), path)


def _quantize(name: str, inputs: list[str], traced: Path, path: Path, calibration: Iterable[Sequence[Tensor]]) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = traced.with_name("prepared.onnx")
    quant_pre_process(traced, prepared, skip_symbolic_shape=True)
    options: dict[str, Any] = {
        "per_channel": True,
        "weight_type": QuantType.QInt8,
        "op_types_to_quantize": ["MatMul", "Gemm"],
    }
    if name in _CALIBRATED:
        reader = _Calibration(inputs, calibration)
        quantize_static(prepared, path, reader, activation_type=QuantType.QUInt8, **options)
    else:
        quantize_dynamic(prepared, path, **{**options, "op_types_to_quantize": ["MatMul", "Gemm", "Gather"]})


class _Calibration:
    """Inputs in the form that ONNX Runtime's quantisation reads."""

    def __init__(self, names: list[str], inputs: Iterable[Sequence[Tensor]]) -> None:
        self._rows: Iterator[dict[str, np.ndarray]] = (
            dict(zip(names, (tensor.numpy() for tensor in tensors), strict=True)) for tensors in inputs
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rows, None)


__all__ = ["OPSET", "PRECISIONS", "write_graph"]
