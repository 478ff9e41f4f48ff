# SPDX-License-Identifier: BSD-3-Clause
"""Graphs that OpenVINO runs."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .graph_names import GROUNDED_ENCODER, IMAGE_MEMORY, QUESTION_MEMORY, TEXT_DECODER


if TYPE_CHECKING:
    import openvino

SUFFIX = ".xml"
# Memories are read in each step of decoding, so they are passed in the precision of the computation.
_MEMORY_OUTPUTS = (IMAGE_MEMORY, QUESTION_MEMORY)
_MEMORY_INPUTS = (GROUNDED_ENCODER, TEXT_DECODER)


@cache
def shared_core() -> "openvino.Core":
    """The runtime of the process.

    There is one, kept until the process ends: OpenVINO gives the thread that loads its CPU plugin a stack for signals,
    and unless plugins are freed in reverse order and in that thread, leaves a freed stack in use. The next signal,
    such as that of a `DataLoader` worker that ends or Ctrl+C, then ends the process with a segmentation fault.
    """
    import openvino

    return openvino.Core()


class OpenVinoGraph:
    """A graph that OpenVINO runs on the CPU."""

    def __init__(self, name: str, path: Path, precision: str) -> None:
        import openvino
        from openvino.preprocess import PrePostProcessor

        core = shared_core()
        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        is_bf16 = precision in ("bf16", "int8") and has_bf16
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


__all__ = ["SUFFIX", "OpenVinoGraph", "shared_core"]
