# SPDX-License-Identifier: BSD-3-Clause
"""The best rates of matrix products on this CPU in fp32, bf16 and int8, of OpenVINO's kernels."""

import time

import numpy as np
import torch

from blip_hf.modeling.exported.openvino_runtime import shared_core


ROUNDS = 9


def measure_runtime_rates(width: int) -> dict[str, float]:
    """FLOPs per second of the product of two square matrices, by precision. A multiply-add counts as two."""
    return {precision: _rate(width, precision) for precision in ("fp32", "bf16", "int8")}


def _rate(width: int, precision: str) -> float:
    core = shared_core()
    hint = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}[precision]
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = core.compile_model(_product(width, is_int8=precision == "int8"), "CPU", options).create_infer_request()
    states = np.random.default_rng(0).standard_normal((width, width), dtype=np.float32)
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        request.infer([states], share_inputs=True, share_outputs=True)
        seconds.append(time.perf_counter() - start)
    return 2 * width**3 / min(seconds)


def _product(width: int, *, is_int8: bool) -> "openvino.Model":  # noqa: F821
    """States times a constant matrix; in int8 with the quantisers that the CPU plugin fuses into its int8 product."""
    import openvino
    from openvino import opset13 as ops

    states = ops.parameter([width, width], np.float32)
    weights = np.random.default_rng(1).standard_normal((width, width), dtype=np.float32)
    left: openvino.Node = states
    right: openvino.Node = ops.constant(weights)
    if is_int8:
        left = ops.fake_quantize(left, *map(np.float32, (-4, 4, -4, 4)), 256)
        right = ops.fake_quantize(right, *map(np.float32, (-4, 4, -4, 4)), 255)
    return openvino.Model([ops.matmul(left, right, False, False)], [states])


__all__ = ["measure_runtime_rates"]
