# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf env`: the versions and the hardware that a bug report needs."""

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from .. import __version__
from .parser import Command


PACKAGES = ("torch", "transformers", "accelerate", "datasets", "huggingface_hub", "safetensors", "pillow", "numpy")


@dataclass
class EnvOptions:
    """`blip-hf env` takes no options."""


def _run(options: EnvOptions) -> None:
    rows = environment()
    width = max(map(len, rows)) + 1
    print("\n".join(f"{name + ':':<{width}} {value}" for name, value in rows.items()))


def environment() -> dict[str, str]:
    """Names and versions of what the package runs on."""
    return {
        "blip_hf": __version__,
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "platform": platform.platform(),
        **_hardware(),
        "extras": ", ".join(_extras()) or "none",
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _hardware() -> dict[str, str]:
    import torch

    from ..devices import pick_device

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    flags = _cpu_flags()
    return {
        "cpu": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads of torch",
        "avx512_bf16": "unknown" if flags is None else _yes("avx512_bf16" in flags),
        "amx_bf16": "unknown" if flags is None else _yes("amx_bf16" in flags),
        "cuda": f"{torch.version.cuda}: {', '.join(gpus)}" if gpus else "no",
        "mps": _yes(torch.backends.mps.is_available()),
        "default device": str(pick_device()),
    }


def _cpu_flags(path: Path = Path("/proc/cpuinfo")) -> set[str] | None:
    """Flags of the CPU, where the system lists them."""
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {flag for line in lines if line.startswith("flags") for flag in line.partition(":")[2].split()}


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _extras() -> Iterable[str]:
    """Names of the extras whose packages are all installed."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in requires("blip_hf") or ()]
    except PackageNotFoundError:
        return  # run from its source
    packages: dict[str, list[str]] = {}
    for requirement in requirements:
        extra = str(requirement.marker or "").partition("extra == ")[2].strip("\"'")
        if extra:
            packages.setdefault(extra, []).append(requirement.name)
    for extra, names in packages.items():
        if all(_version(name) != "not installed" for name in names):
            yield extra


COMMAND = Command(
    prog="blip-hf env",
    description="Prints versions and hardware, for a bug report.",
    options=EnvOptions,
    run=_run,
)

__all__ = ["COMMAND", "PACKAGES", "EnvOptions", "environment"]
