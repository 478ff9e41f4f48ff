# SPDX-License-Identifier: BSD-3-Clause
"""Runs the demo: pre-training with a progress bar, evaluation, and the report."""

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import TrainerCallback

from ..data.scenes import Scenes
from ..devices import pick_device
from ..files import atomic_write, write_json
from ..model_card import write_model_card
from ..modeling.caption import BlipForConditionalGeneration
from ..modeling.retrieval import BlipForImageTextRetrieval
from ..pages import percent
from ..processing_blip import BlipProcessor
from ..tasks.pretrain import pretrain
from ..tasks.run_card import read_facts
from .evaluate import Evaluation, evaluate
from .page import LOSSES, NOTES, render_report
from .settings import DemoSettings


_NUM_IMAGES = 24
_NUM_LINES = 10


def run_demo(settings: DemoSettings, output_dir: Path, console: Console) -> dict[str, Any]:
    """Pre-trains, evaluates on held-out scenes, and writes the report.

    Args:
        settings (`DemoSettings`):
            Size and length of the run.
        output_dir (`Path`):
            Output folder of the model, `captioner/`, `retriever/`, `metrics.json` and `index.html`.
        console (`Console`):
            Shows progress and results.

    Returns:
        `dict[str, Any]`: the content of `metrics.json`.
    """
    start = time.monotonic()
    console.print(f"Drawing {settings.num_scenes} scenes to train on and {settings.num_held_out} to test on.")
    with LossProgress(settings.steps, console) as progress:
        pretrain(settings.pretrain_options(), settings.training_arguments(output_dir), callbacks=[progress])
    console.print("Captioning and matching the held-out scenes.")
    held_out, device = settings.held_out_scenes(), pick_device()
    evaluation = evaluate(
        BlipForConditionalGeneration.from_pretrained(output_dir / "captioner").to(device).eval(),
        BlipForImageTextRetrieval.from_pretrained(output_dir / "retriever").to(device).eval(),
        BlipProcessor.from_pretrained(output_dir),
        held_out,
        training_captions=Scenes(settings.num_scenes, image_size=settings.image_size).captions(),
    )
    metrics = {
        "settings": asdict(settings),
        "minutes": (time.monotonic() - start) / 60,
        "scores": {score.key: asdict(score) for score in evaluation.scores},
        "losses": progress.history,
    }
    write_json(metrics, output_dir / "metrics.json")
    write_score_cards(output_dir, evaluation, settings.num_held_out)
    page = render_report(metrics, evaluation, [held_out[i] for i in range(min(_NUM_IMAGES, len(held_out)))])
    with atomic_write(output_dir / "index.html") as path:
        path.write_text(page, encoding="utf-8")
    print_table(evaluation, console)
    console.print(
        f"{metrics['minutes']:.1f} minutes. Images and captions: {output_dir / 'index.html'}", soft_wrap=True
    )
    return metrics


def write_score_cards(output_dir: Path, evaluation: Evaluation, num_held_out: int) -> None:
    """Adds the scores to the model cards: each model gets those that it takes part in."""
    facts = read_facts(output_dir)
    scores = {score.key: score.value for score in evaluation.scores}
    captioning = {name: value for name, value in scores.items() if "caption_" in name}
    retrieval = {name: value for name, value in scores.items() if name not in captioning}
    for part, metrics in {"": scores, "captioner": captioning, "retriever": retrieval}.items():
        found = replace(facts, eval_data=[f"scenes:{num_held_out} (held-out)"], metrics=metrics)
        write_model_card(output_dir / part, found)


class LossProgress(TrainerCallback):
    """Progress bar with the latest losses, which prints ten of them as lines. `history` has all logged losses."""

    def __init__(self, steps: int, console: Console) -> None:
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        self.progress = Progress(*columns, console=console)
        self.task = self.progress.add_task("pre-training", total=steps)
        self.steps = steps
        self.next_line = 1
        self.history: list[dict[str, float]] = []

    def __enter__(self) -> "LossProgress":
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def on_log(  # type: ignore[override]  # an event has logs
        self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any
    ) -> None:
        """Shows the losses; the log at the end of training has none."""
        if LOSSES[0] not in logs:
            return
        step = state.global_step
        self.history.append({"step": step, **{name: logs[name] for name in LOSSES}})
        losses = "  ".join(f"{name.removeprefix('loss_')} {logs[name]:6.3f}" for name in LOSSES)
        self.progress.update(self.task, completed=step, description=losses)
        if step * _NUM_LINES >= self.next_line * self.steps:
            line = f"step {step:>{len(str(self.steps))}}  {losses}  itm accuracy {logs['itm_accuracy']:.2f}"
            self.progress.console.print(line)
            self.next_line = step * _NUM_LINES // self.steps + 1


def print_table(evaluation: Evaluation, console: Console) -> None:
    """Prints the scores beside chance."""
    table = Table(title="Held-out scenes", title_justify="left")
    table.add_column()
    for heading in ("model", "chance", "cases"):
        table.add_column(heading, justify="right")
    for score in evaluation.scores:
        table.add_row(score.label, percent(score.value), percent(score.chance), str(score.num_cases))
    console.print(table)
    console.print(NOTES.format(blind_caption=evaluation.blind_caption))


__all__ = ["LossProgress", "print_table", "run_demo"]
