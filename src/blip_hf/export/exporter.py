# SPDX-License-Identifier: BSD-3-Clause
"""Writes the folder of an exported model: its graphs, and what a checkpoint has beside its weights."""

import hashlib
import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import logging

from ..checkpoints import EXPORT_FILE
from ..files import atomic_write, file_digest, size_of, write_json
from ..modeling.base import BlipPreTrainedModel
from ..modeling.exported.graph_names import IMAGE_ENCODER, IMAGE_MEMORY
from ..modeling.exported.models import DIGEST_KEY, HEADS_FILE
from ..modeling.retrieval import BlipForImageTextRetrieval
from ..processing_blip import BlipProcessor
from .calibration import NUM_IMAGES, calibration_pixels
from .graphs import Graph, graphs_of
from .writers import precisions, write_graph


logger = logging.get_logger(__name__)

_VERSIONED = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",)}
_HEADS = ("vision_proj", "text_proj", "itm_head")
_STATES_PER_PASS = 8


def export_model(
    model: BlipPreTrainedModel,
    processor: BlipProcessor,
    output_dir: str | os.PathLike[str],
    *,
    format: str = "openvino",
    precision: str = "fp32",
    calibration: str | os.PathLike[str] | None = None,
    num_calibration_images: int = NUM_IMAGES,
) -> dict[str, int]:
    """Exports a captioner, a matcher or a VQA model for a runtime, to a folder that `from_pretrained` opens.

    The folder appears whole or not at all. `fp32` equals the model up to rounding.

    Args:
        model (`BlipPreTrainedModel`):
            A `BlipForConditionalGeneration`, `BlipForImageTextRetrieval` or `BlipForQuestionAnswering` in fp32, without
            [`optimize_for_cpu`].
        processor (`BlipProcessor`):
            Its processor, saved beside.
        output_dir (`str` or `os.PathLike`):
            New folder.
        format (`str`, *optional*, defaults to `"openvino"`):
            `"openvino"` or `"onnx"`.
        precision (`str`, *optional*, defaults to `"fp32"`):
            `"fp32"`; `"fp16"`, whose weights take half of the space; `"bf16"` (OpenVINO), which computes in bf16 on CPUs that
            have it; `"int8"`, where the image encoder computes in int8, and text models have int8 weights.
        calibration (`str` or `os.PathLike`, *optional*):
            For int8: folder of a few hundred images like those that the model will read. Defaults to drawn scenes.
        num_calibration_images (`int`, *optional*, defaults to 300):
            Number of images to use of them.

    Returns:
        `dict[str, int]`: Bytes of each graph.

    Raises:
        TypeError: If the model is of another class.
        ValueError: If the format lacks the precision, the model is not in fp32, or the output folder exists.
        ImportError: If the runtime is not installed.
    """
    output_dir = Path(output_dir)
    _check(model, output_dir, format, precision)
    graphs = graphs_of(model)
    inputs = _CalibrationInputs(model, processor, calibration, num_calibration_images) if precision == "int8" else None
    with atomic_write(output_dir) as folder, _sdpa(model):
        folder.mkdir()
        sizes = {}
        for name, graph in graphs.items():
            logger.info(f"Exporting {name}.")
            write_graph(format, name, graph, folder / name, precision, () if inputs is None else inputs.of(name))
            sizes[name] = sum(size_of(path) for path in folder.glob(f"{name}.*"))
        _write_rest(model, processor, folder)
        write_json(_manifest(model, folder, graphs, format, precision), folder / EXPORT_FILE)
    return sizes


def _check(model: BlipPreTrainedModel, output_dir: Path, format: str, precision: str) -> None:
    if precision not in precisions(format):
        raise ValueError(f"The format {format} has no {precision}. Pass one of {', '.join(precisions(format))}.")
    if output_dir.exists():
        raise ValueError(f"{output_dir} already exists. Pass a new folder.")
    if model.dtype != torch.float32:
        raise ValueError(
            f"The model is in {model.dtype}. Load it with dtype=torch.float32, and choose a precision here."
        )


def _write_rest(model: BlipPreTrainedModel, processor: BlipProcessor, folder: Path) -> None:
    config = type(model.config).from_dict(model.config.to_dict())
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    if isinstance(model, BlipForImageTextRetrieval):
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name.startswith(_HEADS)}
        save_file(state, folder / HEADS_FILE, metadata={"format": "pt"})


def _manifest(
    model: BlipPreTrainedModel, folder: Path, graphs: Mapping[str, Graph], format: str, precision: str
) -> dict[str, Any]:
    files = sorted(path for name in graphs for path in folder.glob(f"{name}.*"))
    files += list(folder.glob(HEADS_FILE))
    digest = hashlib.sha256("".join(map(file_digest, files)).encode()).hexdigest()[:16]
    return {
        "model_class": type(model).__name__,
        "format": format,
        "precision": precision,
        "graphs": {
            name: {"inputs": list(graph.inputs), "outputs": list(graph.outputs)} for name, graph in graphs.items()
        },
        DIGEST_KEY: digest,
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "transformers", *_VERSIONED[format])
        },
    }


@contextmanager
def _sdpa(model: BlipPreTrainedModel) -> Iterator[None]:
    """Traces fused attention, which the runtimes recognise, whatever the model computes with."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(implementation)


class _CalibrationInputs:
    """Inputs of the graphs whose activations are quantised: pixels, and the states that the model computes of them."""

    def __init__(
        self,
        model: BlipPreTrainedModel,
        processor: BlipProcessor,
        folder: str | os.PathLike[str] | None,
        num_images: int,
    ) -> None:
        self._model = model
        self._pixels = calibration_pixels(processor, None if folder is None else Path(folder), num_images)

    def of(self, name: str) -> list[tuple[Tensor]]:
        if name == IMAGE_ENCODER:
            return [(pixels,) for pixels in self._pixels]
        return [(states,) for states in self._states()] if name == IMAGE_MEMORY else []

    @torch.inference_mode()
    def _states(self) -> list[Tensor]:
        states: list[Tensor] = []
        vision_model: Any = self._model.vision_model
        for first in range(0, len(self._pixels), _STATES_PER_PASS):
            pixels = torch.cat(self._pixels[first : first + _STATES_PER_PASS])
            states += vision_model(pixels).last_hidden_state.split(1)
        return states


__all__ = ["export_model"]
