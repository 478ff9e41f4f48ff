# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf capfilt`: captions and filters image-text pairs, filters again by another rule, and writes a report."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..capfilt.settings import CapFiltSettings
from ..files import format_json
from ..tasks.base import ALLOW_OUTSIDE_HELP, PAIRS_HELP
from .engine_options import EngineOptions, check_engine, cluster_of
from .launcher import launched_process
from .parser import Command, CommandGroup
from .stop_signals import stop_signals


if TYPE_CHECKING:
    from ..capfilt.filters import Rule


@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """Which pairs to keep, and their format. Options that are not given keep the defaults of `Rule`."""

    threshold: float | None = field(
        default=None,
        metadata={"help": "Keep texts with at least this score (default: 0.5, the paper's; none for the posterior)"},
    )
    keep_share: float | None = field(
        default=None,
        metadata={"help": "Keep this fraction of the texts of each source instead, in (0, 1]", "metavar": "FRACTION"},
    )
    best_per_image: bool = field(default=False, metadata={"help": "Keep at most the best text of each image"})
    sources: list[str] | None = field(
        default=None, metadata={"help": "Keep texts of web, synthetic or both (default: both)", "metavar": "SOURCE"}
    )
    by: Literal["itm", "itc", "posterior"] = field(
        default="itm",
        metadata={
            "help": "Score: itm, the probability of a match; itc, the cosine similarity; or posterior, both together: ITM"
            " log-odds plus cosine / T"
        },
    )
    itm_temperature: float | None = field(
        default=None, metadata={"help": "T of the posterior (default: that of the filter)", "metavar": "T"}
    )
    format: Literal["parquet", "webdataset", "json"] = field(
        default="parquet", metadata={"help": "Format of the pairs: parquet, webdataset (tars) or json (BLIP's lists)"}
    )

    def rule(self) -> "Rule":
        """The rule that these options make."""
        from ..capfilt.filters import Rule

        names = ("threshold", "keep_share", "best_per_image", "sources", "by", "itm_temperature")
        return Rule(**{name: getattr(self, name) for name in names if getattr(self, name) is not None})


@dataclass(frozen=True, kw_only=True)
class RunOptions(RuleOptions, EngineOptions, CapFiltSettings):
    """What `blip-hf capfilt run` takes."""

    source: list[str] = field(metadata={"help": f"Pairs: {PAIRS_HELP}"})
    captioner: str = field(metadata={"help": "Captioning checkpoint with its processor"})
    filter: str = field(metadata={"help": "Image-text retrieval checkpoint with its processor"})
    output_dir: str = field(
        metadata={"help": "Folder of the run; one that was interrupted is resumed", "old_names": ["output"]}
    )
    image_root: str | None = field(default=None, metadata={"help": "Folder that relative image paths start from"})
    allow_outside: bool = field(default=False, metadata={"help": ALLOW_OUTSIDE_HELP})
    shard_size: int = field(default=1000, metadata={"help": "Records per shard, for sources without shards"})
    device: str | None = field(
        default=None, metadata={"help": "Device, such as cuda:1 (default: an accelerator, if there is one)"}
    )
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Data type of the weights"}
    )
    no_progress: bool = field(default=False, metadata={"help": "Hide the progress bar"})


@dataclass(frozen=True, kw_only=True)
class RefilterOptions(RuleOptions):
    """What `blip-hf capfilt refilter` takes."""

    run: str = field(metadata={"help": "Folder of the run", "positional": True, "metavar": "RUN"})
    output_dir: str = field(metadata={"help": "Folder for the pairs that are kept", "old_names": ["output"]})


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What `blip-hf capfilt report` takes."""

    run: str = field(metadata={"help": "Folder of the run", "positional": True, "metavar": "RUN"})
    labels: str | None = field(
        default=None, metadata={"help": "JSON list of 1 for each web text that fits its image, 0 for others"}
    )


def run(options: RunOptions) -> None:
    """Runs CapFilt on Ray, or as one of several processes if `torchrun` or `accelerate launch` started them."""
    from transformers.utils import logging

    from ..capfilt.report import write_report

    logging.disable_progress_bar()
    check_engine(options)
    process_index, _ = launched_process()
    totals = _run_on_ray(options) if options.engine == "ray" else _run_locally(options)
    if process_index > 0:
        return
    if not _has_report_of(Path(options.output_dir), totals):
        try:
            write_report(options.output_dir)
        except ImportError as error:
            print(f"blip-hf capfilt: no report.html: {error}", file=sys.stderr)
    print(format_json(totals))


def _run_locally(options: RunOptions) -> dict[str, Any]:
    from ..capfilt.engine import CapFilt
    from ..capfilt.runner import run_capfilt

    process_index, num_processes = launched_process()
    engine = CapFilt.from_pretrained(
        options.captioner,
        options.filter,
        device=options.device,
        dtype=options.dtype,
        settings=_settings(options),
    )
    return run_capfilt(
        engine,
        _source(options),
        options.output_dir,
        process_index=process_index,
        num_processes=num_processes,
        **_run_arguments(options),
    )


def _run_on_ray(options: RunOptions) -> dict[str, Any]:
    from ..capfilt.engines.ray import run_capfilt_on_ray

    with stop_signals():
        return run_capfilt_on_ray(
            options.captioner,
            options.filter,
            _source(options),
            options.output_dir,
            settings=_settings(options),
            device=options.device,
            dtype=options.dtype,
            cluster=cluster_of(options),
            **_run_arguments(options),
        )


def _settings(options: RunOptions) -> CapFiltSettings:
    return CapFiltSettings(**{item.name: getattr(options, item.name) for item in fields(CapFiltSettings)})


def _source(options: RunOptions) -> str | list[str]:
    return options.source[0] if len(options.source) == 1 else options.source


def _run_arguments(options: RunOptions) -> dict[str, Any]:
    """The arguments that all engines take."""
    return {
        "image_root": options.image_root,
        "allow_outside": options.allow_outside,
        "shard_size": options.shard_size,
        "rule": options.rule(),
        "format": options.format,
        "show_progress": not options.no_progress,
    }


def _has_report_of(folder: Path, totals: Mapping[str, Any]) -> bool:
    """Whether the report has these totals; one of an unfinished run has others."""
    figures = folder / "report.json"
    has_both = figures.is_file() and (folder / "report.html").is_file()
    return has_both and json.loads(figures.read_text(encoding="utf-8"))["totals"] == totals


def refilter(options: RefilterOptions) -> None:
    """Filters a finished run by another rule, without a model."""
    from ..capfilt.refilter import refilter as filter_again

    print(format_json(filter_again(options.run, options.rule(), options.output_dir, options.format)))


def report(options: ReportOptions) -> None:
    """Writes the report of a run."""
    from ..capfilt.report import write_report

    print(write_report(options.run, labels=options.labels))


COMMANDS = {
    "run": Command(
        prog="blip-hf capfilt run",
        description="Captions images, and keeps the web and synthetic texts that the filter scores high",
        options=RunOptions,
        run=run,
        resumes=True,
    ),
    "refilter": Command(
        prog="blip-hf capfilt refilter",
        description="Filters a finished run by another rule, without a model",
        options=RefilterOptions,
        run=refilter,
    ),
    "report": Command(
        prog="blip-hf capfilt report",
        description="Writes report.html and report.json about a run",
        options=ReportOptions,
        run=report,
    ),
}
COMMAND = CommandGroup("blip-hf capfilt", COMMANDS)

__all__ = ["COMMAND", "COMMANDS", "RefilterOptions", "ReportOptions", "RuleOptions", "RunOptions"]
