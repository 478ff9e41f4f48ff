# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf plan`: memory, time and data rates of a pre-training, without running it."""

import json
import re
from dataclasses import dataclass, field
from typing import Literal

from .errors import UsageError
from .parser import Command


_UNITS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9}


@dataclass(kw_only=True)
class PlanOptions:
    """Options of `blip-hf plan`."""

    model: Literal["base", "large"] = field(default="base", metadata={"help": "Image encoder: ViT-B/16 or ViT-L/16"})
    gpus: int = field(default=1, metadata={"help": "Number of GPUs", "metavar": "N"})
    pairs: str = field(default="14M", metadata={"help": "Number of pairs, such as 129M or 14000000", "metavar": "N"})
    device: Literal["a100", "h100", "h200", "l40s"] = field(default="h100", metadata={"help": "Type of the GPUs"})
    batch_size: int = field(default=75, metadata={"help": "Pairs per GPU and step", "metavar": "N"})
    epochs: float = field(default=20, metadata={"help": "Number of epochs", "metavar": "N"})
    image_size: int = field(default=224, metadata={"help": "Image size in pixels", "metavar": "N"})
    peak_share: float = field(
        default=0.35,
        metadata={"help": "Assumed share of the peak FLOP/s; measure it on your machine", "metavar": "SHARE"},
    )
    pair_kilobytes: float = field(
        default=40, metadata={"help": "Assumed kB of a stored pair; 40 is a JPEG of some 256 pixels", "metavar": "KB"}
    )

    def __post_init__(self) -> None:
        for name in ("gpus", "batch_size", "epochs", "image_size", "pair_kilobytes"):
            if getattr(self, name) <= 0:
                raise UsageError(f"--{name} is {getattr(self, name)}, expected more than 0.")
        if not 0 < self.peak_share <= 1:
            raise UsageError(f"--peak_share is {self.peak_share}, expected a share in (0, 1].")
        self.num_pairs = parse_number(self.pairs)


def parse_number(text: str) -> float:
    """Parses a number with a unit.

    Example:
        >>> parse_number("129M"), parse_number("5000")
        (129000000.0, 5000.0)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB]?)", text.strip().upper())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"--pairs is {text!r}, expected a number above 0 such as 14000000, 14M or 1.5B.")
    return float(match[1]) * _UNITS[match[2]]


def _run(options: PlanOptions) -> None:
    from ..planning import DEVICES, count_work, make_config, make_plan

    device = DEVICES[options.device]
    work = count_work(make_config(options.model, options.image_size))
    plan = make_plan(
        work,
        device,
        num_devices=options.gpus,
        batch_size=options.batch_size,
        num_pairs=options.num_pairs,
        num_epochs=options.epochs,
        peak_share=options.peak_share,
        pair_bytes=1e3 * options.pair_kilobytes,
    )
    rows = {
        "trained_parameters": work.num_trained,
        "tflops_per_pair": round(work.flops / 1e12, 3),
        "memory_gb_per_gpu": round(plan.memory_bytes / 1e9, 1),
        "fits": plan.memory_bytes < device.memory_bytes,
        "step_seconds": round(plan.step_seconds, 3),
        "num_steps": round(plan.num_steps),
        "days": round(plan.days, 2),
        "storage_tb": round(plan.storage_bytes / 1e12, 2),
        "read_mb_per_second": round(plan.read_bytes_per_second / 1e6, 1),
    }
    print(json.dumps(rows, indent=2))


COMMAND = Command(
    prog="blip-hf plan",
    description="Estimates memory, time, storage and bandwidth of a pre-training.",
    options=PlanOptions,
    run=_run,
)

__all__ = ["COMMAND", "PlanOptions", "parse_number"]
