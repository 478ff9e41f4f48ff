# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf demo`: pre-trains a small BLIP on the embedded scenes, captions and matches new ones, writes a report."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .parser import Command


if TYPE_CHECKING:
    from rich.console import Console

    from ..demo.evaluate import Evaluation
    from ..demo.pretrain import DemoSettings


_NUM_IMAGES = 24
_NUM_LINES = 10


@dataclass(kw_only=True)
class DemoOptions:
    """What `blip-hf demo` takes. Options that are `None` keep the defaults of `DemoSettings`."""

    output_dir: Path = field(default=Path("runs/demo"), metadata={"help": "Folder for the models and the report"})
    steps: int | None = field(default=None, metadata={"help": "Optimizer steps"})
    num_scenes: int | None = field(default=None, metadata={"help": "Scenes to train on"})
    seed: int | None = field(default=None, metadata={"help": "Seed of scenes, weights and batches (default: 0)"})


def _run(options: DemoOptions) -> None:
    import transformers
    from rich.console import Console

    from ..demo.pretrain import DemoSettings

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    given = {name: value for name, value in vars(options).items() if name != "output_dir" and value is not None}
    run(DemoSettings(**given), options.output_dir, Console(highlight=False))


def run(settings: "DemoSettings", output_dir: Path, console: "Console") -> dict[str, Any]:
    """Trains, evaluates and writes.

    Args:
        settings (`DemoSettings`):
            Size and length of the run.
        output_dir (`Path`):
            Gets `captioner/`, `retriever/`, `metrics.json`, `losses.png` and `index.html`.
        console (`Console`):
            Where progress and the table are shown.

    Returns:
        `dict[str, Any]`: what is in `metrics.json`.
    """
    from ..caption_settings import PRETRAINING_SETTINGS
    from ..demo.evaluate import evaluate
    from ..demo.pretrain import EncodedScenes, build_processor, pretrain

    start = time.monotonic()
    output_dir.mkdir(parents=True, exist_ok=True)
    console.print(f"Drawing {settings.num_scenes} scenes to train on and {settings.num_held_out} to test on.")
    processor = build_processor(settings.image_size)
    train_dataset = EncodedScenes(settings.training_scenes(), processor)
    held_out = EncodedScenes(settings.held_out_scenes(), processor)
    with loss_bar(settings.steps, console) as report:
        model, history = pretrain(settings, processor, train_dataset, output_dir, report)
    console.print("Captioning and matching the held-out scenes.")
    evaluation = evaluate(model, processor, held_out, train_dataset.captions)
    processor.caption_settings = PRETRAINING_SETTINGS
    for name, head in (("captioner", model.export_captioner()), ("retriever", model.export_retriever())):
        head.save_pretrained(output_dir / name)
        processor.save_pretrained(output_dir / name)
    minutes = (time.monotonic() - start) / 60
    metrics = write_report(settings, evaluation, history, minutes, output_dir)
    print_table(evaluation, console)
    console.print(f"{minutes:.1f} minutes. Images and captions: {output_dir / 'index.html'}", soft_wrap=True)
    return metrics


@contextmanager
def loss_bar(steps: int, console: "Console") -> Iterator[Callable[[dict[str, float]], None]]:
    """A progress bar with the latest losses, above which some of them stay as lines.

    Args:
        steps (`int`):
            Length of the run.
        console (`Console`):
            Where it is shown.

    Yields:
        `Callable[[dict[str, float]], None]`: to be called with each log of the losses.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("pre-training", total=steps)
        next_line = 1

        def report(log: dict[str, float]) -> None:
            nonlocal next_line
            step = int(log["step"])
            losses = "  ".join(f"{name} {log[f'loss_{name}']:6.3f}" for name in ("itc", "itm", "lm"))
            progress.update(task, completed=step, description=losses)
            if step * _NUM_LINES >= next_line * steps:
                progress.console.print(
                    f"step {step:>{len(str(steps))}}  {losses}  itm accuracy {log['itm_accuracy']:.2f}"
                )
                next_line = step * _NUM_LINES // steps + 1

        yield report
        progress.update(task, completed=steps, description="pre-training")


def write_report(
    settings: "DemoSettings",
    evaluation: "Evaluation",
    history: list[dict[str, float]],
    minutes: float,
    output_dir: Path,
) -> dict[str, Any]:
    """Writes `metrics.json`, `losses.png` and `index.html`.

    Args:
        settings (`DemoSettings`):
            Of the run.
        evaluation (`Evaluation`):
            Its results.
        history (`list[dict[str, float]]`):
            Its losses.
        minutes (`float`):
            What it took.
        output_dir (`Path`):
            Where to.

    Returns:
        `dict[str, Any]`: what is in `metrics.json`.
    """
    from dataclasses import asdict

    from ..demo.page import draw_losses, render_report

    metrics = {
        "settings": asdict(settings),
        "minutes": minutes,
        "scores": {score.key: asdict(score) for score in evaluation.scores},
        "losses": history,
    }
    curve = draw_losses(history)
    held_out = settings.held_out_scenes()
    images = [held_out[i]["image"] for i in range(min(_NUM_IMAGES, len(held_out)))]
    summary = (
        f"{settings.steps} steps of {settings.batch_size} pairs on {settings.num_scenes} drawn scenes, with the"
        f" contrastive, matching and captioning objectives together; {minutes:.1f} minutes, seed {settings.seed}."
    )
    page = render_report(evaluation, held_out.captions(), images, curve, summary)
    (output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    (output_dir / "losses.png").write_bytes(curve)
    (output_dir / "index.html").write_text(page, encoding="utf-8")
    return metrics


def print_table(evaluation: "Evaluation", console: "Console") -> None:
    """Shows the scores beside chance.

    Args:
        evaluation (`Evaluation`):
            The results.
        console (`Console`):
            Where to.
    """
    from rich.table import Table

    from ..demo.page import notes
    from ..pages import percent

    table = Table(title="Scenes it has never seen", title_justify="left")
    table.add_column()
    for heading in ("model", "chance", "cases"):
        table.add_column(heading, justify="right")
    for score in evaluation.scores:
        table.add_row(score.label, percent(score.value), percent(score.chance), str(score.num_cases))
    console.print(table)
    console.print(notes(evaluation))


COMMAND = Command(
    prog="blip-hf demo",
    description="Pre-trains a small BLIP on drawn scenes with its three objectives, captions and matches held-out scenes,"
    " and writes the model, metrics.json and a page of images. Takes a few minutes on two cores.",
    options=DemoOptions,
    run=_run,
)

__all__ = ["COMMAND", "DemoOptions", "loss_bar", "print_table", "run", "write_report"]
