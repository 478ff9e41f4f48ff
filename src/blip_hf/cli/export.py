# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf export`: a checkpoint to a folder of graphs that runs without PyTorch's kernels."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .errors import UsageError
from .parser import Command


if TYPE_CHECKING:
    from ..modeling.base import BlipPreTrainedModel


@dataclass(kw_only=True)
class ExportOptions:
    """What `blip-hf export` takes."""

    checkpoint: str = field(
        metadata={
            "help": "Folder or model id of a captioning, retrieval or VQA model",
            "positional": True,
            "metavar": "CHECKPOINT",
        }
    )
    output_dir: Path = field(metadata={"help": "New folder, which all commands open as a checkpoint"})
    format: Literal["openvino", "onnx"] = field(
        default="openvino", metadata={"help": "openvino is faster on CPUs; onnx runs in more places"}
    )
    precision: Literal["fp32", "bf16", "fp16", "int8"] = field(
        default="fp32", metadata={"help": "fp16 halves the files; bf16 and int8 are faster and change some captions"}
    )
    calibration: Path | None = field(
        default=None,
        metadata={"help": "With int8: folder of a few hundred images like those to caption (default: drawn scenes)"},
    )
    num_calibration_images: int = field(default=300, metadata={"help": "With int8: number of images to use of them"})

    def __post_init__(self) -> None:
        if self.calibration is not None and self.precision != "int8":
            raise UsageError(f"--calibration goes with --precision int8 only, not with {self.precision}.")
        if self.num_calibration_images < 1:
            raise UsageError(f"--num_calibration_images is {self.num_calibration_images}, expected 1 or more.")


def _run(options: ExportOptions) -> int:
    from transformers.utils import logging

    from ..export.exporter import export_model
    from ..processing_blip import BlipProcessor

    logging.disable_progress_bar()
    sizes = export_model(
        _load(options.checkpoint),
        BlipProcessor.from_pretrained(options.checkpoint),
        options.output_dir,
        format=options.format,
        precision=options.precision,
        calibration=options.calibration,
        num_calibration_images=options.num_calibration_images,
    )
    print(json.dumps({"output_dir": str(options.output_dir), "bytes": sum(sizes.values()), "graphs": sizes}))
    return 0


def _load(checkpoint: str) -> "BlipPreTrainedModel":
    import torch

    from ..checkpoints import head_of, is_export
    from ..modeling.caption import BlipForConditionalGeneration
    from ..modeling.retrieval import BlipForImageTextRetrieval
    from ..modeling.vqa import BlipForQuestionAnswering

    if is_export(checkpoint):
        raise UsageError(f"{checkpoint} is an exported model already. Pass the checkpoint that it was exported from.")
    model_class = {
        "captioner": BlipForConditionalGeneration,
        "matcher": BlipForImageTextRetrieval,
        "vqa": BlipForQuestionAnswering,
    }[head_of(checkpoint)]
    return model_class.from_pretrained(checkpoint, dtype=torch.float32)


COMMAND = Command(
    prog="blip-hf export",
    description="Exports a captioner, a matcher or a VQA model to graphs of OpenVINO or ONNX. BlipCaptioner, blip-hf caption,"
    " match, ask, serve and capfilt open the folder as any checkpoint. Prints the bytes of each graph as JSON. Needs the extra"
    " openvino or export.",
    options=ExportOptions,
    run=_run,
)

__all__ = ["COMMAND", "ExportOptions"]
