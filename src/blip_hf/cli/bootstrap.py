# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf bootstrap`: the paper's whole loop from one YAML file, or on drawn scenes without any."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from .options import read_yaml


if TYPE_CHECKING:
    from ..bootstrap.config import LoopSettings


LOCKS = "locks"
"""Folder of the lock that the process at work in an output folder holds."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the loop, or what is left of it, and prints the closing table.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments after the name of the command. Those of the process by default.

    Returns:
        `int`: 0.

    Raises:
        ValueError: If the settings do not fit, or several processes were started.
    """
    arguments = build_parser().parse_args(argv)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "blip-hf bootstrap runs in one process. Start it without a launcher, or launch the commands of its stages:"
            " pretrain, finetune and capfilt."
        )
    from ..bootstrap.config import LoopSettings

    settings = LoopSettings.from_mapping({} if arguments.config is None else read_yaml(arguments.config))
    # Only the table goes to stdout; the trainers would print their logs there too.
    with redirect_stdout(sys.stderr):
        table = run(settings, arguments.output)
    print(table)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command.

    Returns:
        `argparse.ArgumentParser`: of a file of settings and a folder.
    """
    parser = argparse.ArgumentParser(
        prog="blip-hf bootstrap",
        description="Pre-trains on noisy pairs, fine-tunes a captioner and a filter on clean ones, cleans the noisy pairs"
        " with them, pre-trains again from scratch, and compares the models. Without --config it runs on drawn scenes. The"
        " same command again goes on where it was interrupted, and does again only what changed settings change.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, help="YAML file; examples/recipes has some (default: drawn scenes)")
    parser.add_argument("--output", type=Path, default=Path("runs/bootstrap"), help="where to (default: %(default)s)")
    return parser


def run(settings: "LoopSettings", output: Path) -> str:
    """Does what the command does.

    Args:
        settings (`LoopSettings`):
            Settings of the loop.
        output (`Path`):
            Gets a folder a seed with a folder a stage, `results.json` and `table.md`.

    Returns:
        `str`: the closing table.

    Raises:
        ValueError: If the settings do not fit, or another process is at work in the folder.
    """
    from ..locks import Locks

    settings.check()
    locks = Locks(output / LOCKS)
    with locks.hold("bootstrap", wait=False) as is_held:
        if not is_held:
            raise ValueError(
                f"Another blip-hf bootstrap is running in {output}. Wait until it ends, or pass another --output."
            )
        table = _run_seeds(settings, output)
        locks.remove_files()
        return table


def _run_seeds(settings: "LoopSettings", output: Path) -> str:
    import datasets
    import transformers

    from ..bootstrap.loop import run_seed
    from ..bootstrap.table import write_results

    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    results = [
        run_seed(settings, seed, output / f"seed-{seed}", lambda line, seed=seed: print(f"[seed {seed}] {line}"))
        for seed in settings.seeds
    ]
    return write_results(settings, results, output)


__all__ = ["LOCKS", "build_parser", "main", "run"]
