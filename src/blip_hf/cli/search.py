# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf search`: searches an index by text and image, finds duplicates in it, and labels its images."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..search.filters import FILTER_HELP
from .errors import UsageError
from .output import open_output
from .parser import Command
from .search_results import Result, SearchFormat, duplicate_results, hit_results, label_results, write_results
from .skipped import say
from .stop_signals import stop_signals


if TYPE_CHECKING:
    from ..search.index import BlipIndex

DEFAULT_THRESHOLD = 0.95
_FORMATS: dict[str, SearchFormat] = {".json": "json", ".html": "html"}


@dataclass(kw_only=True)
class SearchOptions:
    """What `blip-hf search` takes."""

    index: str = field(metadata={"help": "Folder that `blip-hf index` wrote", "positional": True, "metavar": "INDEX"})
    text: str | None = field(
        default=None, metadata={"help": "Text to search for, in quotes", "positional": True, "metavar": "TEXT"}
    )
    image: Path | None = field(
        default=None, metadata={"help": "Image to search for, alone or with the text", "metavar": "FILE"}
    )
    image_weight: float = field(
        default=0.5, metadata={"help": "With text and image: weight of the image, from 0 to 1"}
    )
    k: int = field(default=10, metadata={"help": "Number of images to find; with --labels, of each label"})
    rerank: int = field(
        default=0, metadata={"help": "Candidates that the ITM head compares with the text, to sort them by it"}
    )
    filter: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"Condition that images fulfil; repeat it for several: {FILTER_HELP}",
            "metavar": "CONDITION",
            "repeatable": True,
        },
    )
    duplicates: float | None = field(
        default=None,
        metadata={
            "help": f"List groups of images whose cosine with the first is at least this (default: {DEFAULT_THRESHOLD})",
            "nargs": "?",
            "const": DEFAULT_THRESHOLD,
        },
    )
    labels: str | None = field(
        default=None, metadata={"help": "Labels with commas between them, to give each image one", "metavar": "A,B,C"}
    )
    format: SearchFormat | None = field(
        default=None, metadata={"help": "Format of the results (default: that of the suffix of --output, or table)"}
    )
    output: Path | None = field(default=None, metadata={"help": "File to write to (default: stdout)"})
    model: str | None = field(
        default=None,
        metadata={"help": "Where the model of the index is now (default: where it was)", "metavar": "RETRIEVER"},
    )
    batch_size: int = field(default=32, metadata={"help": "Images per batch of re-ranking"})
    workers: int = field(
        default=2, metadata={"help": "Threads that read images to re-rank; 0 for none", "aliases": ["num_workers"]}
    )
    device: str | None = field(
        default=None, metadata={"help": "Device, such as cpu or cuda:1 (default: an accelerator, if there is one)"}
    )

    def __post_init__(self) -> None:
        queries = [name for name in ("text", "image") if getattr(self, name) is not None]
        lists = [name for name in ("duplicates", "labels") if getattr(self, name) is not None]
        if not queries and not lists:
            raise UsageError(
                "there is nothing to search for. Pass a text in quotes, --image, --duplicates or --labels."
            )
        if len(lists) > 1 or (lists and queries):
            other = "a text" if self.text is not None else f"--{[*queries, *lists[1:]][0]}"
            raise UsageError(f"--{lists[0]} does not go with {other}. Leave one of them out.")
        if self.rerank and self.text is None:
            raise UsageError("--rerank compares images with a text. Add a text in quotes, or leave it out.")
        for name, minimum in (("k", 1), ("rerank", 0), ("batch_size", 1), ("workers", 0)):
            if getattr(self, name) < minimum:
                raise UsageError(f"--{name} is {getattr(self, name)}, expected {minimum} or more.")
        if not 0 <= self.image_weight <= 1:
            raise UsageError(f"--image_weight is {self.image_weight}, expected 0 to 1.")
        if self.duplicates is not None and not -1 <= self.duplicates <= 1:
            raise UsageError(f"--duplicates is {self.duplicates}, expected a cosine from -1 to 1.")
        if self.format is None:
            suffix = self.output.suffix.lower() if self.output else ""
            self.format = _FORMATS.get(suffix, "table")

    def title(self) -> str:
        """What was searched for."""
        if self.duplicates is not None:
            return f"Duplicates from a cosine of {self.duplicates:g}"
        if self.labels is not None:
            return f"Labels {self.labels}"
        return " and ".join(str(query) for query in (self.text, self.image) if query)


def _run(options: SearchOptions) -> int:
    with stop_signals():
        from transformers.utils import logging

        from ..search.index import BlipIndex

        logging.disable_progress_bar()
        index = BlipIndex.open(
            options.index,
            model=options.model,
            device=options.device,
            batch_size=options.batch_size,
            num_workers=options.workers,
        )
        results = _find(index, options)
        with open_output(options.output) as stream:
            write_results(results, stream, options.format or "table", title=options.title(), index=index)
    if not results:
        say("blip-hf search", f"nothing found among {len(index):,} images")
    return 0 if results else 1


def _find(index: "BlipIndex", options: SearchOptions) -> list[Result]:
    if options.duplicates is not None:
        return duplicate_results(index.duplicates(options.duplicates, filters=options.filter))
    if options.labels is not None:
        labels = [label.strip() for label in options.labels.split(",") if label.strip()]
        return label_results(index.label(labels, filters=options.filter), options.k)
    hits = index.search(
        options.text,
        image=options.image,
        k=options.k,
        rerank=options.rerank,
        filters=options.filter,
        image_weight=options.image_weight,
    )
    return hit_results(hits)


COMMAND = Command(
    prog="blip-hf search",
    description='Searches an index: `blip-hf search my.index "a dog jumping over a log"`. The exit status is 1 if nothing is'
    " found.",
    options=SearchOptions,
    run=_run,
)

__all__ = ["COMMAND", "SearchOptions"]
