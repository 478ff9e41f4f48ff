# SPDX-License-Identifier: BSD-3-Clause
"""Writes and quantises graphs for OpenVINO."""

import logging
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..modeling.exported.graph_names import IMAGE_ENCODER, IMAGE_MEMORY
from ..modeling.exported.openvino_runtime import SUFFIX
from .graphs import Graph
from .tracing import tracing


if TYPE_CHECKING:
    import openvino

PRECISIONS = ("fp32", "bf16", "fp16", "int8")

_CALIBRATED = (IMAGE_ENCODER, IMAGE_MEMORY)


def write_graph(name: str, graph: Graph, path: Path, precision: str, calibration: Iterable[Sequence[Tensor]]) -> None:
    """Traces a graph and saves it. `calibration` are inputs of a graph that is quantised with its activations."""
    import openvino

    with tracing():
        model = openvino.convert_model(graph.module, example_input=tuple(graph.inputs.values()))
    for port, port_name in zip(model.inputs, graph.inputs, strict=True):
        port.get_tensor().set_names({port_name})
    for port, port_name in zip(model.outputs, graph.outputs, strict=True):
        port.get_tensor().set_names({port_name})
    if precision == "int8":
        with redirect_stdout(sys.stderr):  # nncf draws tables
            model = _quantize(name, model, calibration)
    # Weights in bf16 are stored as fp16, which has more digits. Weights of BLIP are within its range.
    openvino.save_model(model, path.with_suffix(SUFFIX), compress_to_fp16=precision in ("bf16", "fp16"))


def _quantize(name: str, model: "openvino.Model", calibration: Iterable[Sequence[Tensor]]) -> "openvino.Model":
    import nncf

    nncf.set_log_level(logging.ERROR)
    if name not in _CALIBRATED:
        # In bf16, decoding with int8 weights is as fast as with int8 activations, and nearer to the model.
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    inputs = [[tensor.numpy() for tensor in tensors] for tensors in calibration]
    return nncf.quantize(model, nncf.Dataset(inputs), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(inputs))


__all__ = ["PRECISIONS", "write_graph"]
