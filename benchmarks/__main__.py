# SPDX-License-Identifier: BSD-3-Clause
"""Runs all jobs (`python -m benchmarks --size base`) or some (`python -m benchmarks caption --size base`).

Each job runs in its own process with all options. Writes `results/<date>.json` and a table `results/<date>.md`, and
keeps earlier results of other jobs of the same day.
"""

import datetime
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

from blip_hf.files import atomic_write

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
    "export",
    "serving",
    "imports",
    "streams",
    "savings",
    "tried",
    "growth",
)


def main(arguments: Sequence[str], folder: Path = RESULTS) -> int:
    """Runs jobs, writes and prints their results, and returns the number of failed jobs; missed targets do not count."""
    if {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\nJobs: {', '.join(JOBS)}. Options: see `python -m {__package__}.caption --help`.")
        return 0
    jobs = list(takewhile(lambda argument: not argument.startswith("-"), arguments))
    options = arguments[len(jobs) :]
    if unknown := sorted(set(jobs) - set(JOBS)):
        raise SystemExit(f"Unknown jobs: {', '.join(unknown)}. Available: {', '.join(JOBS)}.")
    stem = folder / datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    results = _read(stem) if jobs else {}
    failed = []
    for job in jobs or JOBS:
        print(f"# {job}", flush=True)
        command = [sys.executable, "-m", f"{__package__}.{job}", *options]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        *lines, last = done.stdout.splitlines() or [""]
        print("\n".join(lines), flush=True)
        if done.returncode:
            failed.append(job)
        else:
            results[job] = json.loads(last)
        in_order = [results[name] for name in JOBS if name in results]
        _write(stem, in_order, failed)  # after each job, as all of them take hours
    print("\n".join(table_lines(in_order)))
    print(json.dumps(_report(in_order, failed)))
    return len(failed)


def _read(stem: Path) -> dict[str, dict[str, Any]]:
    """Earlier results of the same day, by job."""
    path = stem.with_suffix(".json")
    if not path.exists():
        return {}
    return {result["job"]: result for result in json.loads(path.read_text())["jobs"]}


def _report(results: Sequence[Mapping[str, Any]], failed: Sequence[str]) -> dict[str, Any]:
    return {"failed": list(failed), "jobs": list(results)}


def _write(stem: Path, results: Sequence[Mapping[str, Any]], failed: Sequence[str]) -> None:
    texts = {".json": json.dumps(_report(results, failed), indent=1), ".md": "\n".join(table_lines(results))}
    for suffix, text in texts.items():
        with atomic_write(stem.with_suffix(suffix)) as path:
            path.write_text(text + "\n")


def table_lines(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The results as a Markdown table, with a row for each baseline of each case."""
    for where, group in groupby(results, key=_where):
        yield f"{', '.join(result['job'] for result in group)}: {where}.\n"
    yield "| job | baseline | blip_hf, s | baseline, s | speed-up | target | memory / baseline | share of the limit |"
    yield "|---|---|---|---|---|---|---|---|"
    for result in results:
        for row in result.get("rows", ()):
            yield from _row_lines(row)
    for result in results:
        for name, series in result.get("series", {}).items():
            seconds = ", ".join(f"{point['n']}: {point['seconds']:.3g} s" for point in series["points"])
            yield f"| {series['job']} by {name} | - | {seconds} | | | exponent {series['exponent']} | | |"


def _where(result: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    rounds = f", median of {result['rounds']} rounds" if "rounds" in result else ""
    return (
        f"{result['date'][:10]}, commit {result['commit']}, {result['device']}, {result['threads']} thread(s), {versions}, "
        f"size {result['size']}{rounds}"
    )


def _row_lines(row: Mapping[str, Any]) -> Iterator[str]:
    if not row["seconds"]:
        yield from _bytes_lines(row)
        return
    ours, share = row["seconds"][OURS]["median"], f"{row['limit']['share']:.0%}" if row["limit"] else "-"
    if not row["speedup"]:
        yield f"| {row['case']} | - | {ours:.4g} | - | - | {row['note']} | - | {share} |"
    for rival, ratio in row["speedup"].items():
        seconds = row["seconds"][rival]["median"]
        wanted = row["targets"].get(rival, "-")
        memory, least = "-", row["memory_targets"].get(rival)
        if row["peak_bytes"]:
            memory = f"{row['peak_bytes'][OURS] / max(row['peak_bytes'][rival], 1):.2f}"
        memory += "" if least is None else f" (target {least})"
        yield (
            f"| {row['case']} | {rival} | {ours:.4g} | {seconds:.4g} | {ratio:.2f} | {wanted} | {memory} | {share} |"
        )


def _bytes_lines(row: Mapping[str, Any]) -> Iterator[str]:
    """Lines of a row that has bytes only."""
    sizes = row["peak_bytes"]
    for rival, size in sizes.items():
        if rival != OURS:
            least = row["memory_targets"].get(rival)
            target = "" if least is None else f" (target {least})"
            yield f"| {row['case']} | {rival} | - | - | - | - | {sizes[OURS] / size:.2f}{target} | - |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
