# SPDX-License-Identifier: BSD-3-Clause
"""Learning curves of several ways to train, each with several seeds."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blip_hf.files import write_json


def mean_curves(report: Mapping[str, Any]) -> dict[str, dict[int, list[float]]]:
    """R@1 of all seeds, by way and step."""
    curves: dict[str, dict[int, list[float]]] = {}
    for run in report["runs"]:
        for step, value in run["curve"]:
            curves.setdefault(run["way"], {}).setdefault(step, []).append(value)
    return curves


def write_results(report: Mapping[str, Any], lines: Sequence[str], path: Path) -> None:
    """Writes a report, its table and its plot beside each other, and prints the table."""
    write_json(report, path, indent=1)
    path.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plot(report, path.with_suffix(".png"))
    print("\n".join(lines))


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Draws the mean curves and, lightly, those of the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, (way, curve) in enumerate(mean_curves(report).items()):
        steps = sorted(curve)
        axes.plot(steps, [100 * statistics.fmean(curve[step]) for step in steps], color=f"C{number}", label=way)
        for run in report["runs"]:
            if run["way"] == way:
                axes.plot(
                    *zip(*((step, 100 * value) for step, value in run["curve"]), strict=True), f"C{number}", alpha=0.2
                )
    axes.set(xlabel="step", ylabel="R@1 on new scenes, %", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=120)
