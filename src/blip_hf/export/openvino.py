# SPDX-License-Identifier: BSD-3-Clause
"""Writes, quantises and runs graphs with OpenVINO."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .graphs import GROUNDED_ENCODER, IMAGE_ENCODER, IMAGE_MEMORY, QUESTION_MEMORY, TEXT_DECODER, Graph
from .tracing import tracing


SUFFIX = ".xml"
PRECISIONS = ("fp32", "bf16", "fp16", "int8")

# Memories are read in each step of decoding, so they are passed in the precision of the computation.
_MEMORY_OUTPUTS = (IMAGE_MEMORY, QUESTION_MEMORY)
_MEMORY_INPUTS = (GROUNDED_ENCODER, TEXT_DECODER)
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
        model = _quantize(name, model, calibration)
    # Weights in bf16 are stored as fp16, which has more digits. Weights of BLIP are within its range.
    openvino.save_model(model, path.with_suffix(SUFFIX), compress_to_fp16=precision in ("bf16", "fp16"))


def _quantize(name: str, model: "openvino.Model", calibration: Iterable[Sequence[Tensor]]) -> "openvino.Model":
    import nncf

    if name not in _CALIBRATED:
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    inputs = [[tensor.numpy() for tensor in tensors] for tensors in calibration]
    return nncf.quantize(model, nncf.Dataset(inputs), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(inputs))


class OpenVinoGraph:
    """A graph that OpenVINO runs on the CPU."""

    def __init__(self, name: str, path: Path, precision: str) -> None:
        import openvino
        from openvino.preprocess import PrePostProcessor

        core = openvino.Core()
        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        is_bf16 = precision in ("bf16", "int8") and has_bf16
        self.memory_dtype = torch.bfloat16 if is_bf16 else torch.float32
        model = core.read_model(path.with_suffix(SUFFIX))
        processor = PrePostProcessor(model)
        self._bf16_inputs = set()
        for idx, port in enumerate(model.inputs):
            if is_bf16 and name in _MEMORY_INPUTS and port.get_any_name().startswith(("key.", "value.")):
                processor.input(idx).tensor().set_element_type(openvino.Type.bf16)
                self._bf16_inputs.add(idx)
        if is_bf16 and name in _MEMORY_OUTPUTS:
            for idx in range(len(model.outputs)):
                processor.output(idx).tensor().set_element_type(openvino.Type.bf16)
        self._bf16 = openvino.Type.bf16
        self._as_tensor = openvino.Tensor
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if is_bf16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "CACHE_DIR": "",
        }
        self._model = core.compile_model(processor.build(), "CPU", options)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Runs the graph. Results stay valid: each call has a request of its own."""
        request = self._model.create_infer_request()
        given = [self._to_runtime(idx, tensor) for idx, tensor in enumerate(inputs)]
        request.infer(given, share_inputs=True)
        return [_to_torch(request.get_output_tensor(idx)) for idx in range(len(self._model.outputs))]

    def _to_runtime(self, idx: int, tensor: Tensor) -> "np.ndarray | openvino.Tensor":
        tensor = tensor.detach().contiguous()
        if idx not in self._bf16_inputs:
            return tensor.numpy()
        # NumPy has no bf16.
        bits = tensor.to(torch.bfloat16).view(torch.int16).numpy()
        return self._as_tensor(bits, list(tensor.shape), self._bf16)


def _to_torch(tensor: "openvino.Tensor") -> Tensor:
    import openvino

    data = tensor.data
    if tensor.element_type == openvino.Type.bf16:
        return torch.from_numpy(data.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(data)


def graph_size(path: Path) -> int:
    """Bytes of the files of a graph."""
    return sum(os.path.getsize(path.with_suffix(suffix)) for suffix in (SUFFIX, ".bin"))


__all__ = ["PRECISIONS", "SUFFIX", "OpenVinoGraph", "graph_size", "write_graph"]
