# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf demo`: pre-trains a small BLIP on the embedded scenes, captions and matches new ones, writes a report."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments after the name of the command. Those of the process by default.

    Returns:
        `int`: 0.
    """
    arguments = build_parser().parse_args(argv)
    import transformers
    from rich.console import Console

    from ..demo.run import run_demo
    from ..demo.settings import DemoSettings

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    options = {name: value for name, value in vars(arguments).items() if name != "output_dir" and value is not None}
    run_demo(DemoSettings(**options), arguments.output_dir, Console(highlight=False))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command.

    Returns:
        `argparse.ArgumentParser`: its defaults of `None` leave the choice to `DemoSettings`.
    """
    parser = argparse.ArgumentParser(
        prog="blip-hf demo",
        description="Pre-trains a small BLIP on drawn scenes with the three objectives, captions and matches scenes that"
        " it has never seen, and writes the model, metrics.json and a page of images. Takes a few minutes on two cores.",
        allow_abbrev=False,
    )
    parser.add_argument("--output-dir", type=Path, default=Path("runs/demo"), help="where to (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="optimiser steps")
    parser.add_argument("--num-scenes", type=int, help="scenes to train on")
    parser.add_argument("--seed", type=int, help="seed of scenes, weights and batches (default: 0)")
    return parser


__all__ = ["build_parser", "main"]
