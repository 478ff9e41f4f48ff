# SPDX-License-Identifier: BSD-3-Clause
"""All jobs, one process each: `python -m benchmarks --size base`.

Writes `results/<date>.json` and, as a table, `results/<date>.md` beside this file. Arguments go to every job.
"""

import datetime
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from blip_hf.files import unfinished

from .growth import RESULTS
from .harness import OURS


JOBS = (
    "caption",
    "matching",
    "reranking",
    "pretraining_step",
    "finetune_step",
    "vqa_ranking",
    "processor",
    "imports",
    "savings",
    "tried",
    "growth",
)


def main(arguments: Sequence[str], folder: Path = RESULTS, jobs: Sequence[str] = JOBS) -> int:
    """Runs the jobs, and writes and prints what they found.

    Args:
        arguments (sequence of `str`):
            Arguments of every job.
        folder (`Path`, *optional*, defaults to `benchmarks/results`):
            Where results are put.
        jobs (sequence of `str`, *optional*, defaults to all):
            Names of the jobs.

    Returns:
        `int`: how many jobs failed, for the shell. Missing a target is no failure.
    """
    results, failed = [], []
    stem = folder / datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    for job in jobs:
        print(f"# {job}", flush=True)
        command = [sys.executable, "-m", f"{__package__}.{job}", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        *lines, last = done.stdout.splitlines() or [""]
        print("\n".join(lines), flush=True)
        if done.returncode:
            failed.append(job)
        else:
            results.append(json.loads(last))
        _write(stem, results, failed)  # after each, as all of them take hours
    print("\n".join(table_lines(results)))
    print(json.dumps(_report(results, failed)))
    return len(failed)


def _report(results: Sequence[Mapping[str, Any]], failed: Sequence[str]) -> dict[str, Any]:
    return {"failed": list(failed), "jobs": list(results)}


def _write(stem: Path, results: Sequence[Mapping[str, Any]], failed: Sequence[str]) -> None:
    texts = {".json": json.dumps(_report(results, failed), indent=1), ".md": "\n".join(table_lines(results))}
    for suffix, text in texts.items():
        with unfinished(stem.with_suffix(suffix)) as path:
            path.write_text(text + "\n")


def table_lines(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The results in Markdown, a line for each rival of each case.

    Args:
        results (sequence of `dict`):
            What jobs have printed.

    Returns:
        iterator of `str`: lines.
    """
    if results:
        first = results[0]
        versions = ", ".join(f"{name} {number}" for name, number in first["versions"].items())
        yield f"{first['date']}, commit {first['commit']}, {first['device']}, {first['threads']} thread(s), {versions}."
        yield f"Size {first['size']}, median of {first.get('rounds')} rounds, in turn.\n"
    yield "| job | rival | ours, s | rival, s | times as fast | wanted | memory of the rival's | share of the limit |"
    yield "|---|---|---|---|---|---|---|---|"
    for result in results:
        for row in result.get("rows", ()):
            yield from _row_lines(row)
    for result in results:
        for name, series in result.get("series", {}).items():
            seconds = ", ".join(f"{point['n']}: {point['seconds']:.3g} s" for point in series["points"])
            yield f"| {series['job']} by {name} | - | {seconds} | | | exponent {series['exponent']} | | |"


def _row_lines(row: Mapping[str, Any]) -> Iterator[str]:
    ours, share = row["seconds"][OURS]["median"], f"{row['limit']['share']:.0%}" if row["limit"] else "-"
    if not row["speedup"]:
        yield f"| {row['case']} | - | {ours:.4g} | - | - | {row['note']} | - | {share} |"
    for rival, ratio in row["speedup"].items():
        seconds = row["seconds"][rival]["median"]
        wanted = row["targets"].get(rival, "-")
        memory, least = "-", row["memory_targets"].get(rival)
        if row["peak_bytes"]:
            memory = f"{row['peak_bytes'][OURS] / max(row['peak_bytes'][rival], 1):.2f}"
        memory += "" if least is None else f" (wanted {least})"
        yield (
            f"| {row['case']} | {rival} | {ours:.4g} | {seconds:.4g} | {ratio:.2f} | {wanted} | {memory} | {share} |"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
