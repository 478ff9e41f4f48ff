# SPDX-License-Identifier: BSD-3-Clause
"""Writes and quantises graphs for OpenVINO."""

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
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
        model = _quantize_apart(name, model, calibration)
    # Weights in bf16 are stored as fp16, which has more digits. Weights of BLIP are within its range.
    openvino.save_model(model, path.with_suffix(SUFFIX), compress_to_fp16=precision in ("bf16", "fp16"))


def _quantize_apart(name: str, model: "openvino.Model", calibration: Iterable[Sequence[Tensor]]) -> "openvino.Model":
    """Quantises a model in a process of its own: nncf changes torch and the logging of the process that imports it."""
    import openvino

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        openvino.save_model(model, folder / "traced.xml", compress_to_fp16=False)
        for number, tensors in enumerate(calibration if name in _CALIBRATED else ()):
            np.savez(folder / f"{number:05d}.npz", *(tensor.numpy() for tensor in tensors))
        done = subprocess.run(
            [sys.executable, "-c", _QUANTIZE, temporary], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"nncf cannot quantise {name}: {(done.stderr.strip() or 'it died').splitlines()[-1]}")
        core = openvino.Core()
        core.set_property({"ENABLE_MMAP": False})  # the file is removed
        return core.read_model(folder / "quantized.xml")


# With calibration inputs, quantises weights and activations. Without, weights: in bf16, decoding with int8 weights is as
# fast as with int8 activations, and nearer to the model.
_QUANTIZE = """
import sys
from pathlib import Path

sys.modules["openvino_telemetry"] = None  # sends no usage statistics

import nncf
import numpy as np
import openvino

folder = Path(sys.argv[1])
model = openvino.Core().read_model(folder / "traced.xml")
inputs = [list(np.load(path).values()) for path in sorted(folder.glob("*.npz"))]
if inputs:
    options = {"model_type": nncf.ModelType.TRANSFORMER, "subset_size": len(inputs)}
    model = nncf.quantize(model, nncf.Dataset(inputs), **options)
else:
    model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
openvino.save_model(model, folder / "quantized.xml", compress_to_fp16=False)
"""


__all__ = ["PRECISIONS", "write_graph"]
