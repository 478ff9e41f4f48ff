# SPDX-License-Identifier: BSD-3-Clause
"""Machine, versions, date and commit of a measurement."""

import datetime
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

import blip_hf


CPU_INFO = Path("/proc/cpuinfo")
ROOT = Path(__file__).parents[1]
# Paths that affect the measurements. A run writes results, which are excluded.
MEASURED = ("src", "benchmarks", ":(exclude)benchmarks/results")


def describe(device: torch.device) -> dict[str, object]:
    """Describes device, threads, versions, date and commit."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "versions": {
            "blip_hf": blip_hf.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "pillow")},
        },
    }


def processor() -> str:
    """Name of the processor, with bf16 if it supports it."""
    if not CPU_INFO.exists():
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in CPU_INFO.read_text().splitlines() if ":" in line)
    values = {name.strip(): value.strip() for name, value in fields.items()}
    has_bf16 = {"avx512_bf16", "amx_bf16"} & set(values.get("flags", "").split())
    return values.get("model name", platform.machine()) + (f" ({', '.join(sorted(has_bf16))})" if has_bf16 else "")


def commit() -> str | None:
    """The current commit, with `+` for uncommitted changes; `None` outside a repository."""
    head = _git("rev-parse", "--short", "HEAD")
    return head if head is None else head + ("+" if _git("status", "--porcelain", "--", *MEASURED) else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


__all__ = ["commit", "describe", "processor"]
