# SPDX-License-Identifier: BSD-3-Clause
"""Time of `import blip_hf` and `blip-hf --help` in new processes, with files in the disk cache."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from .harness import OURS, finish, parse_options, print_row, summarize


IMPORT = "import time; start = time.perf_counter(); import blip_hf; print(time.perf_counter() - start)"
HELP = ("-m", "blip_hf", "--help")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures both, and prints a line for each and JSON."""
    options = parse_options(argv)
    rows = []
    for name, measure, most in (("import blip_hf", import_seconds, 0.15), ("blip-hf --help", help_seconds, 0.5)):
        rows.append(row_of(name, measure, most, options.rounds))
        print_row(rows[-1])
    return finish("imports", options, rows)


def row_of(name: str, measure: Callable[[], float], most: float, rounds: int) -> dict[str, Any]:
    """A row of the table with a target in seconds."""
    measure()
    summary = summarize([measure() for _ in range(rounds)])
    return {
        "case": name,
        "note": f"at most {most} s",
        "seconds": {OURS: summary},
        "speedup": {},
        "targets": {},
        "peak_bytes": {},
        "memory_targets": {},
        "limit": None,
        "met": summary["median"] <= most,
    }


def import_seconds() -> float:
    """Seconds of the import, without the start of Python."""
    return float(subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True).stdout)


def help_seconds() -> float:
    """Seconds of the whole command."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *HELP], capture_output=True, check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
