# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf demo`: pre-trains a small BLIP on drawn scenes, captions and matches held-out ones, and writes a report."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from .parser import Command


@dataclass(kw_only=True)
class DemoOptions:
    """What `blip-hf demo` takes. Options that are `None` keep the defaults of `DemoSettings`."""

    output_dir: Path = field(default=Path("runs/demo"), metadata={"help": "Folder for the models and the report"})
    steps: int | None = field(default=None, metadata={"help": "Optimizer steps"})
    num_scenes: int | None = field(default=None, metadata={"help": "Scenes to train on"})
    seed: int | None = field(default=None, metadata={"help": "Seed of weights and batches (default: 0)"})


def _run(options: DemoOptions) -> None:
    # Here rather than after the training, which the report follows.
    missing = [name for name in ("jinja2", "matplotlib", "rich") if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"The demo needs {' and '.join(missing)}, which is not installed: pip install 'blip_hf[demo]'"
        )
    import transformers
    from rich.console import Console

    from ..demo.run import run_demo
    from ..demo.settings import DemoSettings

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    given = {name: value for name, value in vars(options).items() if name != "output_dir" and value is not None}
    run_demo(DemoSettings(**given), options.output_dir, Console(highlight=False))


COMMAND = Command(
    prog="blip-hf demo",
    description="Pre-trains a small BLIP on drawn scenes with its three objectives, captions and matches held-out scenes,"
    " and writes the model, metrics.json and a page of images. Takes a few minutes on two cores.",
    options=DemoOptions,
    run=_run,
)

__all__ = ["COMMAND", "DemoOptions"]
