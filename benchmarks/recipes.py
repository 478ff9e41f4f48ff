# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf pretrain` with the recipe that it chooses, with the demo's tuned one and with the paper's, on drawn scenes.

    python -m benchmarks.recipes --max_steps 1100 --seeds 0 1 2

All runs have the sizes and the learning rate of the demo's model and the three objectives. Writes `results/recipes_scenes.json`,
a table and a plot of R@1 on new scenes beside it.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from blip_hf.cli import main as blip_hf
from blip_hf.demo.settings import DemoSettings

from .curves import write_results
from .environment import describe
from .growth import RESULTS
from .momentum import MOMENTUM, RECALLS


CHOSEN, TUNED, PUBLISHED = "chosen by `pretrain`", "tuned by hand", "the paper's"
PAPER_QUEUE = 57_600
NUM_EVALUATIONS = 11
# Name in the trainer's log, head of the column and format.
COLUMNS = {
    "eval_image_to_text_r@1": ("image to text, R@1", "{:.1%}"),
    "eval_text_to_image_r@1": ("text to image, R@1", "{:.1%}"),
    "eval_r_mean": ("mean of R@1, 5, 10", "{:.1%}"),
    "eval_itm_accuracy": ("ITM accuracy", "{:.1%}"),
    "eval_loss_lm": ("LM loss", "{:.3f}"),
}


def main(argv: Sequence[str] | None = None, folder: Path = RESULTS) -> dict[str, Any]:
    """Trains with each recipe and seed, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=1100, help="Optimiser steps of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Seeds of weights and batches")
    parser.add_argument("--num_scenes", type=int, default=8000, help="Scenes to train on")
    parser.add_argument("--num_held_out", type=int, default=500, help="New scenes to evaluate on")
    parser.add_argument("--name", default="scenes", help="Name of the results")
    options = parser.parse_args(argv)
    settings = DemoSettings(options.max_steps, num_scenes=options.num_scenes, num_held_out=options.num_held_out)
    runs = []
    for seed in options.seeds:
        for recipe, arguments in recipes(settings).items():
            run = train([*common(settings), *arguments, "--seed", str(seed)])
            runs.append({"way": recipe, "seed": seed, "options": arguments, **run})
            print(f"{recipe}, seed {seed}: {run['seconds']:.0f} s, R@1 {run['curve'][-1][1]:.1%}", flush=True)
    report = {
        "job": "recipes",
        **describe(torch.device("cpu")),
        "common_options": common(settings),
        "runs": runs,
    }
    write_results(report, table_lines(report), folder / f"recipes_{options.name}.json")
    return report


def common(settings: DemoSettings) -> list[str]:
    """Options of all runs: data, size of the model, length and learning rate."""
    values = {
        "data": "scenes",
        "num_scenes": settings.num_scenes,
        "in_memory": True,
        "eval_data": "scenes",
        "num_eval_scenes": settings.num_held_out,
        "eval_strategy": "steps",
        "eval_steps": max(1, settings.steps // NUM_EVALUATIONS),
        "per_device_eval_batch_size": 100,
        "max_steps": settings.steps,
        "learning_rate": settings.learning_rate,
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
    }
    sizes = settings.pretrain_options()
    names = ("image_size", "patch_size", "vision_width", "vision_layers", "text_width", "text_layers", "head_width")
    names += ("feature_width", "initializer_range", "dropout", "label_smoothing")
    return arguments_of(values | {name: getattr(sizes, name) for name in names})


def recipes(settings: DemoSettings) -> dict[str, list[str]]:
    """Further options of each recipe."""
    tuned, trainer = settings.pretrain_options(), settings.training_arguments(Path("unused"))
    return {
        CHOSEN: [],
        TUNED: arguments_of(
            {
                "queue_size": tuned.queue_size,
                "momentum": tuned.momentum,
                "per_device_train_batch_size": settings.batch_size,
                "learn_temperature": trainer.learn_temperature,
                "lr_scheduler_type": trainer.lr_scheduler_type.value,
                "warmup_steps": int(trainer.warmup_steps),
                "max_grad_norm": trainer.max_grad_norm,
                "alpha_ramp_epochs": trainer.alpha_ramp_epochs,
            }
        ),
        PUBLISHED: arguments_of(
            {"queue_size": PAPER_QUEUE, "momentum": MOMENTUM, "per_device_train_batch_size": settings.batch_size}
        ),
    }


def arguments_of(values: Mapping[str, Any]) -> list[str]:
    """Options of the command line."""
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def train(argv: list[str]) -> dict[str, Any]:
    """Seconds, last evaluation and curve of one run."""
    with tempfile.TemporaryDirectory() as folder:
        if code := blip_hf(["pretrain", *argv, "--output_dir", folder]):
            raise SystemExit(code)
        history = json.loads((Path(folder) / "trainer_state.json").read_text())["log_history"]
    evaluations = [entry for entry in history if "eval_r_mean" in entry]
    return {
        "seconds": next(round(entry["train_runtime"], 1) for entry in history if "train_runtime" in entry),
        **{name: evaluations[-1][name] for name in COLUMNS},
        "curve": [(entry["step"], statistics.fmean(entry[name] for name in RECALLS)) for entry in evaluations],
    }


def table_lines(report: Mapping[str, Any]) -> list[str]:
    """Mean and range of the seeds, by recipe."""
    heads = ["recipe", *(head for head, _ in COLUMNS.values())]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for way in dict.fromkeys(run["way"] for run in report["runs"]):
        cells = [way]
        for name, (_, form) in COLUMNS.items():
            values = [run[name] for run in report["runs"] if run["way"] == way]
            mean, low, high = (form.format(value) for value in (statistics.fmean(values), min(values), max(values)))
            cells.append(f"{mean} ({low} to {high})")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    transformers.logging.disable_progress_bar()
    main()
