# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf capfilt`: captions and filters image-text pairs, filters again by another rule, and reports."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..capfilt.settings import CapFiltSettings
from .options import Command, parse_task


if TYPE_CHECKING:
    from ..capfilt.filters import Rule


@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """What to keep, and how to write it. What is not given is left to the rule's own defaults."""

    threshold: float | None = field(
        default=None, metadata={"help": "Least score of a text that is kept. Default: 0.5 (paper)."}
    )
    keep_share: float | None = field(
        default=None, metadata={"help": "Share of the texts of each source to keep instead, in (0, 1]."}
    )
    best_per_image: bool = field(default=False, metadata={"help": "Keep no more than the best text of an image."})
    sources: list[str] | None = field(
        default=None, metadata={"help": "Sources to keep texts from: web, synthetic or both. Default: both."}
    )
    by: Literal["itm", "itc"] = field(
        default="itm", metadata={"help": "Score: itm, the probability of a match, or itc, the cosine."}
    )
    format: Literal["parquet", "webdataset", "json"] = field(
        default="parquet", metadata={"help": "Of the pairs: parquet, webdataset (tars) or json (BLIP's lists)."}
    )

    def rule(self) -> "Rule":
        """The rule that these options make."""
        from ..capfilt.filters import Rule

        names = ("threshold", "keep_share", "best_per_image", "sources", "by")
        return Rule(**{name: getattr(self, name) for name in names if getattr(self, name) is not None})


@dataclass(frozen=True, kw_only=True)
class RunOptions(RuleOptions, CapFiltSettings):
    """A run over a source."""

    source: list[str] = field(
        metadata={
            "help": "Pairs: WebDataset tar(s), Parquet files, JSON lists, folders of them or of images with"
            " metadata.jsonl, or scenes:NUMBER[:NOISE]."
        }
    )
    captioner: str = field(metadata={"help": "Captioning checkpoint with its processor."})
    filter: str = field(metadata={"help": "Image-text retrieval checkpoint with its processor."})
    output: str = field(metadata={"help": "Folder to write to; the same one goes on with a run that was stopped."})
    image_root: str | None = field(default=None, metadata={"help": "Folder that relative image paths start from."})
    shard_size: int = field(default=1000, metadata={"help": "Records of a shard, where files do not make it."})
    device: str | None = field(default=None, metadata={"help": "Where to run. Default: a GPU where there is one."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Type of the weights: float32, bfloat16 or float16."}
    )
    no_progress: bool = field(default=False, metadata={"help": "Show no progress bar."})


@dataclass(frozen=True, kw_only=True)
class RefilterOptions(RuleOptions):
    """Another rule for a run that is done."""

    run: str = field(metadata={"help": "Folder of the run; --run may be left out in front."})
    output: str = field(metadata={"help": "Folder for the pairs that the rule keeps."})


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """A report of a run."""

    run: str = field(metadata={"help": "Folder of the run; --run may be left out in front."})
    labels: str | None = field(
        default=None,
        metadata={"help": "JSON list of what is known of the web texts: 1 if it fits its image, else 0."},
    )


COMMANDS = {
    "run": Command(
        prog="blip-hf capfilt run",
        description="Captions images, and keeps what the filter believes of web and new texts.",
        options=RunOptions,
        usage="--source SOURCE [SOURCE ...] --captioner CHECKPOINT --filter CHECKPOINT --output DIR",
    ),
    "refilter": Command(
        prog="blip-hf capfilt refilter",
        description="Keeps the pairs of a finished run by another rule, without a model.",
        options=RefilterOptions,
        usage="RUN --output DIR",
    ),
    "report": Command(
        prog="blip-hf capfilt report",
        description="Writes a page and figures about a run: report.html, report.json.",
        options=ReportOptions,
        usage="RUN",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a sub-command. Its result is the last line: totals as JSON, or where the report is.

    Args:
        argv (`Sequence[str]`, *optional*):
            The sub-command, and its arguments. Those of the process by default.

    Returns:
        `int`: 0.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if len(arguments) > 1 and arguments[0] in ("refilter", "report") and not arguments[1].startswith("-"):
        arguments.insert(1, "--run")
    parsed = parse_task("blip-hf capfilt", COMMANDS, arguments)
    if parsed is not None:
        task, (options,) = parsed
        {"run": run, "refilter": refilter, "report": report}[task](options)
    return 0


def run(options: RunOptions) -> None:
    """Runs CapFilt, as one of several processes where `torchrun` or `accelerate launch` has started them.

    Args:
        options (`RunOptions`):
            What to run.
    """
    from transformers.utils import logging

    from ..capfilt.engine import CapFilt
    from ..capfilt.report import write_report
    from ..capfilt.runner import run_capfilt

    logging.disable_progress_bar()
    process_index, num_processes, device = _place(options.device)
    engine = CapFilt.from_pretrained(
        options.captioner,
        options.filter,
        device=device,
        dtype=options.dtype,
        settings=CapFiltSettings(**{item.name: getattr(options, item.name) for item in fields(CapFiltSettings)}),
    )
    totals = run_capfilt(
        engine,
        options.source[0] if len(options.source) == 1 else options.source,
        options.output,
        image_root=options.image_root,
        shard_size=options.shard_size,
        rule=options.rule(),
        format=options.format,
        process_index=process_index,
        num_processes=num_processes,
        show_progress=not options.no_progress,
    )
    if process_index > 0:
        return
    if not _has_report_of(Path(options.output), totals):
        try:
            write_report(options.output)
        except ImportError as error:
            print(f"blip-hf capfilt: no report.html: {error}", file=sys.stderr)
    print(json.dumps(totals))


def _has_report_of(folder: Path, totals: Mapping[str, Any]) -> bool:
    """Whether there is a report with these totals, and not one of the shards that were whole at some time."""
    figures = folder / "report.json"
    has_both = figures.is_file() and (folder / "report.html").is_file()
    return has_both and json.loads(figures.read_text(encoding="utf-8"))["totals"] == totals


def refilter(options: RefilterOptions) -> None:
    """Filters again.

    Args:
        options (`RefilterOptions`):
            What to filter.
    """
    from ..capfilt.refilter import refilter as filter_again

    print(json.dumps(filter_again(options.run, options.rule(), options.output, options.format)))


def report(options: ReportOptions) -> None:
    """Reports.

    Args:
        options (`ReportOptions`):
            What to report on.
    """
    from ..capfilt.report import write_report

    print(write_report(options.run, labels=options.labels))


def _place(device: str | None) -> tuple[int, int, str]:
    """Number of this process, how many there are, and its device, without making a process group: none is needed."""
    import torch
    from accelerate.utils import get_int_from_env

    # The variables of torchrun, and of the MPI that `accelerate launch` uses on CPUs.
    process_index = get_int_from_env(["RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"], 0)
    num_processes = get_int_from_env(["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"], 1)
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    return process_index, num_processes, device


__all__ = ["COMMANDS", "RefilterOptions", "ReportOptions", "RuleOptions", "RunOptions", "main"]
