# SPDX-License-Identifier: BSD-3-Clause
"""Learning curves of the contrast by its keys: batch alone, momentum and queue as published, and both after a warm-up.

    python -m benchmarks.momentum --max_steps 1500 --seeds 0 1 2

Trains the demo's model on drawn scenes with the contrastive loss alone, and evaluates it on new scenes as it trains. The queue
has as many batches as that of the paper. Writes `results/momentum_scenes.json`, a table and a plot beside it.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerCallback

from blip_hf.demo.settings import DemoSettings
from blip_hf.tasks.pretrain import pretrain

from .curves import mean_curves, write_results
from .environment import describe
from .growth import RESULTS


# salesforce/BLIP: a queue of 57,600 pairs and batches of 2,880.
QUEUE_BATCHES = 20
MOMENTUM = 0.995
BATCH_ALONE = "batch alone"
WAYS: dict[str, dict[str, Any]] = {
    BATCH_ALONE: {"momentum": 0.0, "queue_batches": 0, "warmup": 0.0},
    "momentum alone, as published": {"momentum": MOMENTUM, "queue_batches": 0, "warmup": 0.0},
    "momentum and queue, as published": {"momentum": MOMENTUM, "queue_batches": QUEUE_BATCHES, "warmup": 0.0},
    "momentum and queue, after a warm-up": {"momentum": MOMENTUM, "queue_batches": QUEUE_BATCHES, "warmup": 0.2},
}
RECALLS = ("eval_image_to_text_r@1", "eval_text_to_image_r@1")
NUM_EVALUATIONS = 15
# Evaluations in the table; the curves have all of them.
SHOWN = (1, 2, 3, 5, 8, 11)


class Curve(TrainerCallback):
    """Mean R@1 of both directions at each evaluation, with the step."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []

    def on_evaluate(  # type: ignore[override]  # an event has metrics
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], **kwargs: Any
    ) -> None:
        """Adds a point; the evaluation at the end repeats the last one."""
        point = (state.global_step, statistics.fmean(metrics[name] for name in RECALLS))
        if point not in self.points:
            self.points.append(point)


def main(argv: Sequence[str] | None = None, folder: Path = RESULTS) -> dict[str, Any]:
    """Trains each way with each seed, and writes the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=1500, help="Optimiser steps of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Seeds of weights and batches")
    parser.add_argument("--num_scenes", type=int, default=8000, help="Scenes to train on")
    parser.add_argument("--num_held_out", type=int, default=500, help="New scenes to evaluate on")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), help="Ways to train")
    parser.add_argument("--name", default="scenes", help="Name of the results")
    options = parser.parse_args(argv)
    runs = []
    for seed in options.seeds:
        for way in options.ways:
            runs.append({"way": way, "seed": seed, **train(WAYS[way], seed, options)})
            print(f"{way}, seed {seed}: {runs[-1]['seconds']:.0f} s, R@1 {runs[-1]['curve'][-1][1]:.1%}", flush=True)
    report = {
        "job": "momentum",
        **describe(torch.device("cpu")),
        "max_steps": options.max_steps,
        "num_scenes": options.num_scenes,
        "num_held_out": options.num_held_out,
        "batch_size": DemoSettings().batch_size,
        "runs": runs,
    }
    write_results(report, table_lines(report), folder / f"momentum_{options.name}.json")
    return report


def train(way: Mapping[str, Any], seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and curve of one run."""
    settings = DemoSettings(steps=options.max_steps, num_scenes=options.num_scenes, seed=seed)
    pretraining = replace(
        settings.pretrain_options(),
        itm_weight=0.0,
        lm_weight=0.0,
        momentum=way["momentum"],
        queue_size=way["queue_batches"] * settings.batch_size,
        contrastive_warmup_steps=int(way["warmup"] * options.max_steps),
        eval_data=[f"scenes:{options.num_held_out}"],
    )
    curve = Curve()
    with tempfile.TemporaryDirectory() as folder:
        arguments = settings.training_arguments(Path(folder))
        arguments.lr_scheduler_type = "constant_with_warmup"  # so that each point is a run of that length
        arguments.eval_strategy = transformers.IntervalStrategy.STEPS
        arguments.eval_steps = max(1, options.max_steps // NUM_EVALUATIONS)
        arguments.per_device_eval_batch_size = 100
        start = time.perf_counter()
        pretrain(pretraining, arguments, callbacks=[curve])
    return {"seconds": round(time.perf_counter() - start, 1), "curve": curve.points}


def table_lines(report: Mapping[str, Any]) -> list[str]:
    """Mean R@1 of the seeds at points of the curves, with the range at the last."""
    curves = mean_curves(report)
    steps = sorted(next(iter(curves.values())))
    shown = [step for number, step in enumerate(steps, start=1) if number in SHOWN or number == len(steps)]
    cells = ["keys", *(f"{step} steps" for step in shown), f"seeds at {shown[-1]}"]
    lines = [f"| {' | '.join(cells)} |", "|---" * len(cells) + "|"]
    for way, curve in curves.items():
        means = [f"{statistics.fmean(curve[step]):.1%}" for step in shown]
        last = curve[shown[-1]]
        lines.append(f"| {way} | {' | '.join(means)} | {min(last):.1%} to {max(last):.1%} |")
    return lines


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    main()
