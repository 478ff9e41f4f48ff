# SPDX-License-Identifier: BSD-3-Clause
"""Graphs that ONNX Runtime runs."""

from pathlib import Path

import torch
from torch import Tensor


SUFFIX = ".onnx"


class OnnxGraph:
    """A graph that ONNX Runtime runs on the CPU."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            path.with_suffix(SUFFIX), options, providers=["CPUExecutionProvider"]
        )
        self._names = [each.name for each in self._session.get_inputs()]

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Runs the graph."""
        given = {name: tensor.detach().contiguous().numpy() for name, tensor in zip(self._names, inputs, strict=True)}
        return [torch.from_numpy(result) for result in self._session.run(None, given)]


__all__ = ["SUFFIX", "OnnxGraph"]
