# SPDX-License-Identifier: BSD-3-Clause
"""Measures implementations of the same job side by side: time, memory, and fraction of the hardware limit.

Implementations ("ways") alternate in one process on the same inputs, so that a slow phase of the machine affects all of
them. The first one is that of this package. A job is a module with a function `cases`; its last line of output is JSON.
"""

import argparse
import gc
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import transformers

from .environment import describe
from .limit import DemandCounter, measure_rates, synchronize
from .sizes import SIZES, Size


Way = Callable[[], Any]
OURS = "blip_hf"
# Width of the matrices that measure the peak rates.
RATE_WIDTHS = {"base": 2048, "small": 1024, "tiny": 128}
_MEASURED = "measured"


@dataclass(frozen=True)
class Options:
    """Options of the command line."""

    size_name: str
    device: torch.device
    rounds: int

    @property
    def size(self) -> Size:
        """Size of the models."""
        return SIZES[self.size_name]


@dataclass(frozen=True)
class Case:
    """One row of the table: a job and its implementations."""

    name: str
    ways: dict[str, Way]  # implementations by name, ours first; called repeatedly
    targets: dict[str, float] = field(default_factory=dict)  # speed-up over each baseline
    memory_targets: dict[str, float] = field(default_factory=dict)  # fraction of the memory of each baseline
    dtype: torch.dtype = torch.float32  # of our matrix products, for the limit
    check: Callable[[Mapping[str, Any]], None] | None = None  # raises if the results, by name, differ
    prepare_memory: Callable[[], None] | None = None  # allocates what memory figures exclude
    has_tensors: bool = True  # whether memory and limit can be measured
    note: str = ""
    more_rounds: int = 1  # factor of the number of rounds, for small differences


@contextmanager
def small_heap() -> Iterator[None]:
    """Excludes existing objects from garbage collection, which makes it fast between runs."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def measure_seconds(ways: Mapping[str, Way], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Seconds of each implementation in each round, alternating, without warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            gc.collect()
            synchronize(device)
            start = time.perf_counter()
            way()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summarize(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 10th and 90th percentiles.

    Example:
        >>> summarize([3.0, 1.0, 2.0])
        {'median': 2.0, 'p10': 1.2, 'p90': 2.8}
    """
    if len(seconds) == 1:
        return dict.fromkeys(("median", "p10", "p90"), seconds[0])
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    summary = {"median": statistics.median(seconds), "p10": tenths[0], "p90": tenths[-1]}
    return {name: round(value, 6) for name, value in summary.items()}


def peak_memory(way: Way, device: torch.device) -> int:
    """Peak bytes of tensors allocated by a run, without memory of Pillow and numpy."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        way()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        way()  # the profiler must see allocations that the next call frees
        with torch.profiler.record_function(_MEASURED):
            way()
    events = profile.profiler.kineto_results.events()
    start = next(event.start_ns() for event in events if event.name() == _MEASURED)
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    peak = level = sum(change for moment, change in changes if moment < start)
    before = level
    for _, change in (item for item in changes if item[0] >= start):
        level += change
        peak = max(peak, level)
    return peak - before


def count_synchronizations(way: Way) -> int:
    """Number of synchronisations with CUDA."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            way()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def run_case(case: Case, options: Options) -> dict[str, Any]:
    """Measures a case and returns a row of the table."""
    results = {name: way() for name, way in case.ways.items()}  # also the warm-up
    if case.check is not None:
        case.check(results)
    del results
    rounds = options.rounds * case.more_rounds
    seconds = measure_seconds(case.ways, options.device, rounds)
    medians = {name: statistics.median(durations) for name, durations in seconds.items()}
    row = {
        "case": case.name + (f", {rounds} rounds" if case.more_rounds > 1 else ""),
        "note": case.note,
        "seconds": {name: summarize(durations) for name, durations in seconds.items()},
        "speedup": {name: round(value / medians[OURS], 3) for name, value in medians.items() if name != OURS},
        "targets": case.targets,
        "peak_bytes": {},
        "memory_targets": case.memory_targets,
        "limit": None,
    }
    if case.has_tensors:
        row |= measure_tensors(case, options, medians[OURS])
    return row | {"met": is_met(row)}


def measure_tensors(case: Case, options: Options, seconds: float) -> dict[str, Any]:
    """Our fraction of the limit, peak memory of all implementations, and synchronisations with CUDA."""
    device = options.device
    rates = measure_rates(device, case.dtype, RATE_WIDTHS[options.size_name])
    with DemandCounter(rates) as counter:
        case.ways[OURS]()
    measured = {"limit": {**asdict(counter.demand()), **asdict(rates), "share": round(counter.seconds / seconds, 3)}}
    if case.prepare_memory is not None:
        case.prepare_memory()
    measured["peak_bytes"] = {name: peak_memory(way, device) for name, way in case.ways.items()}
    if device.type == "cuda":
        measured["synchronizations"] = {name: count_synchronizations(way) for name, way in case.ways.items()}
    return measured


def is_met(row: Mapping[str, Any]) -> bool | None:
    """Whether a row meets its targets of speed and memory; `None` without targets."""
    if not row["targets"] and not row["memory_targets"]:
        return None
    is_fast = all(row["speedup"][rival] >= least for rival, least in row["targets"].items())
    memory = row["peak_bytes"]
    return is_fast and all(memory[OURS] <= share * memory[rival] for rival, share in row["memory_targets"].items())


def run(job: str, cases: Callable[[Options], Iterable[Case]], argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the cases of a job and prints a line for each implementation, then JSON."""
    options = parse_options(argv)
    transformers.logging.set_verbosity_error()
    rows = []
    with small_heap():
        for case in cases(options):
            rows.append(run_case(case, options))
            print_row(rows[-1])
    return finish(job, options, rows)


def finish(job: str, options: Options, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Prints and returns the result of a job as JSON, with machine, versions and date."""
    result = {
        "job": job,
        "size": options.size_name,
        "rounds": options.rounds,
        **describe(options.device),
        "rows": rows,
    }
    print(json.dumps(result))
    return result


def parse_options(argv: Sequence[str] | None = None) -> Options:
    """Parses the options that all jobs share."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="small", help="size of the models")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each implementation, after a warm-up")
    parsed = parser.parse_args(argv)
    return Options(parsed.size, torch.device(parsed.device), parsed.rounds)


def print_row(row: Mapping[str, Any]) -> None:
    """Prints a row."""
    print(f"{row['case']}  (share of the limit: {row['limit']['share']:.0%})" if row["limit"] else row["case"])
    if not row["seconds"]:
        for name, size in row["peak_bytes"].items():
            print(f"  {name:>28}  {size / 2**20:10.1f} MiB")
    for name, summary in row["seconds"].items():
        ratio = "" if name == OURS else f"  {OURS} is {row['speedup'][name]:6.2f} times as fast"
        target = f", target {row['targets'][name]}" if name in row["targets"] else ""
        peak = row["peak_bytes"].get(name)
        memory = "" if peak is None else f"  peak {peak / 2**20:9.1f} MiB"
        print(f"  {name:>28}  {summary['median']:10.4f} s{memory}{ratio}{target}")


__all__ = [
    "OURS",
    "Case",
    "Options",
    "count_synchronizations",
    "finish",
    "is_met",
    "measure_seconds",
    "parse_options",
    "peak_memory",
    "print_row",
    "run",
    "run_case",
    "small_heap",
    "summarize",
]
