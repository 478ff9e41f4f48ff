# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf bootstrap`: the paper's whole loop from one YAML file, or on drawn scenes without one."""

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .config_file import read_yaml
from .launcher import launched_process
from .parser import Command


if TYPE_CHECKING:
    from ..bootstrap.config import LoopSettings


LOCKS = "locks"
"""Subfolder of the lock that the running process holds."""


@dataclass(frozen=True, kw_only=True)
class BootstrapOptions:
    """What `blip-hf bootstrap` takes."""

    config: Path | None = field(
        default=None, metadata={"help": "YAML file of settings; examples/recipes has some. Without one: drawn scenes"}
    )
    output_dir: Path = field(
        default=Path("runs/bootstrap"),
        metadata={"help": "Folder of the run; one that was interrupted is resumed", "old_names": ["output"]},
    )


def _run(options: BootstrapOptions) -> None:
    _, num_processes = launched_process()
    if num_processes > 1:
        raise ValueError(
            "blip-hf bootstrap runs in one process. Start it without a launcher, or launch the commands of its stages:"
            " pretrain, finetune and capfilt."
        )
    from ..bootstrap.config import LoopSettings

    settings = LoopSettings.from_mapping({} if options.config is None else read_yaml(options.config))
    # Only the table goes to stdout; the trainers would print their logs there too.
    with redirect_stdout(sys.stderr):
        table = run_loop(settings, options.output_dir)
    print(table)


def run_loop(settings: "LoopSettings", output_dir: Path) -> str:
    """Runs the loop for each seed, and writes `results.json` and `table.md`.

    Returns:
        `str`: the table.

    Raises:
        ValueError: If the settings do not fit, or another process is running in the folder.
    """
    from ..locks import Locks

    settings.check()
    locks = Locks(output_dir / LOCKS)
    with locks.hold("bootstrap", wait=False) as is_held:
        if not is_held:
            raise ValueError(
                f"Another blip-hf bootstrap is running in {output_dir}. Wait for its end, or pass another --output_dir."
            )
        table = _run_seeds(settings, output_dir)
        locks.remove_files()
        return table


def _run_seeds(settings: "LoopSettings", output_dir: Path) -> str:
    import datasets
    import transformers

    from ..bootstrap.loop import run_seed
    from ..bootstrap.table import write_results

    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    results = [run_seed(settings, seed, output_dir / f"seed-{seed}", partial(_say, seed)) for seed in settings.seeds]
    return write_results(settings, results, output_dir)


def _say(seed: int, line: str) -> None:
    print(f"[seed {seed}] {line}")


COMMAND = Command(
    prog="blip-hf bootstrap",
    description="Pre-trains on noisy pairs, fine-tunes a captioner and a filter on clean ones, cleans the noisy pairs with"
    " them, pre-trains again from scratch, and compares the models. The same command again resumes an interrupted run and"
    " repeats only the stages whose settings have changed.",
    options=BootstrapOptions,
    run=_run,
    resumes=True,
)

__all__ = ["COMMAND", "LOCKS", "BootstrapOptions", "run_loop"]
