# SPDX-License-Identifier: BSD-3-Clause
# /// script
# requires-python = ">=3.11"
# dependencies = ["matplotlib"]
# ///
"""Plot the three losses of a pre-training run, or of several that continue each other.

python examples/plot_losses.py runs/pretrain/trainer_state.json losses.png
python examples/plot_losses.py runs/contrast/trainer_state.json runs/joint/trainer_state.json losses.png
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure


LOSSES = {"loss_itc": "contrastive (ITC)", "loss_itm": "matching (ITM)", "loss_lm": "captioning (LM)"}


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the logs and writes the plot."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("states", type=Path, nargs="+", help="trainer_state.json of each run, in order")
    parser.add_argument("output", type=Path, help="file to write, such as losses.png")
    options = parser.parse_args(argv)

    logs, ends = read_logs(options.states)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axis, (name, title) in zip(figure.subplots(1, len(LOSSES)), LOSSES.items(), strict=True):
        known = [(step, log[name]) for step, log in logs if name in log]
        axis.plot(*zip(*known, strict=True))
        for end in ends[:-1]:
            axis.axvline(end, color="grey", linestyle=":", linewidth=1)
        axis.set(title=title, xlabel="step", xlim=(0, ends[-1]))
        axis.grid(alpha=0.3)
    figure.savefig(options.output, dpi=110)


def read_logs(states: Sequence[Path]) -> tuple[list[tuple[int, dict[str, float]]], list[int]]:
    """Returns the training logs with their steps, counted over all runs, and the last step of each run."""
    logs, ends = [], [0]
    for path in states:
        state = json.loads(path.read_text())
        logs += [(ends[-1] + log["step"], log) for log in state["log_history"] if "loss" in log]
        ends.append(ends[-1] + state["global_step"])
    return logs, ends[1:]


if __name__ == "__main__":
    main()
