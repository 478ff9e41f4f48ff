# SPDX-License-Identifier: BSD-3-Clause
# /// script
# requires-python = ">=3.11"
# dependencies = ["matplotlib"]
# ///
"""Plot the three losses of a pre-training run from what the trainer wrote down.

python examples/plot_losses.py runs/pretrain/trainer_state.json losses.png
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure


LOSSES = {"loss_itc": "contrastive (ITC)", "loss_itm": "matching (ITM)", "loss_lm": "captioning (LM)"}


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the log, writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("state", type=Path, help="trainer_state.json of the run")
    parser.add_argument("picture", type=Path, help="file to write, such as losses.png")
    options = parser.parse_args(argv)

    logs = [log for log in json.loads(options.state.read_text())["log_history"] if "loss_itc" in log]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axis, (name, title) in zip(figure.subplots(1, len(LOSSES)), LOSSES.items(), strict=True):
        axis.plot([log["step"] for log in logs], [log[name] for log in logs])
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    figure.savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
