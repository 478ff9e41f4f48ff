# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf index`: builds an index of images, or brings it up to date."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..tasks.base import ALLOW_OUTSIDE_HELP, DType
from .engine_options import check_engine, cluster_of, engine_option
from .errors import UsageError
from .parser import Command
from .skipped import say
from .stop_signals import Stopped, stop_signals


if TYPE_CHECKING:
    from ..search.encoder import RetrievalEncoder
    from ..search.engines import LocalEngine, RayEngine
    from ..search.updating import UpdateCounts

_PROG = "blip-hf index"


@dataclass(kw_only=True)
class IndexOptions:
    """What `blip-hf index` takes."""

    images: list[str] = field(
        metadata={
            "help": "Image, folder with its subfolders, list, Parquet, tar or data set",
            "positional": True,
            "metavar": "IMAGES",
        }
    )
    model: str = field(metadata={"help": "Folder or model id of a retrieval model", "metavar": "RETRIEVER"})
    output_dir: Path = field(metadata={"help": "Folder of the index; one that exists is brought up to date"})
    image_root: str | None = field(default=None, metadata={"help": "Folder that relative image paths start from"})
    allow_outside: bool = field(default=False, metadata={"help": ALLOW_OUTSIDE_HELP})
    split: str = field(default="train", metadata={"help": "Split of a data set that has several"})
    batch_size: int = field(default=32, metadata={"help": "Images per batch; a killed run loses at most one"})
    workers: int = field(
        default=2,
        metadata={"help": "Threads that read images ahead of the model; 0 for none", "aliases": ["num_workers"]},
    )
    device: str | None = field(
        default=None, metadata={"help": "Device, such as cpu or cuda:1 (default: an accelerator, if there is one)"}
    )
    dtype: DType = field(default="float32", metadata={"help": "Data type of the weights"})
    keep_states: bool = field(
        default=False,
        metadata={"help": "Keep the image states of a new index, so that `blip-hf search --rerank` opens no image"},
    )
    checksum: bool = field(
        default=False, metadata={"help": "Compare the bytes of files whose size and time have not changed too"}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the index that the folder has"})
    engine: Literal["local", "ray"] = engine_option("engine")
    address: str | None = engine_option("address")
    num_actors: int | None = engine_option("num_actors")
    num_cpus: int | None = engine_option("num_cpus")
    num_gpus: float | None = engine_option("num_gpus")

    def __post_init__(self) -> None:
        for name, minimum in (("batch_size", 1), ("workers", 0)):
            if getattr(self, name) < minimum:
                raise UsageError(f"--{name} is {getattr(self, name)}, expected {minimum} or more.")
        check_engine(self)


def _run(options: IndexOptions) -> int:
    # Threads of OpenMP that spin while they wait would hold up those that read. torch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ..search.building import update_index
    from ..search.neighbors import import_faiss
    from ..search.sources import SourceOptions

    import_faiss()  # before the work, not after it
    with stop_signals(), _open_engine(options) as engine, _progress() as advance:
        num_done = 0

        def count(number: int) -> None:
            nonlocal num_done
            num_done += number
            advance(number)

        try:
            counts = update_index(
                options.output_dir,
                engine,
                options.images,
                options=SourceOptions(
                    image_root=options.image_root, allow_outside=options.allow_outside, split=options.split
                ),
                keep_states=options.keep_states,
                overwrite=options.overwrite,
                checksum=options.checksum,
                report=lambda message: say(_PROG, f"skipped: {message}"),
                advance=count,
            )
        except Stopped as stop:
            say(_PROG, f"interrupted after {num_done:,} images. The same command resumes.")
            return stop.status
    return _report(options, counts)


@contextmanager
def _open_engine(options: IndexOptions) -> "Iterator[LocalEngine | RayEngine]":
    load = partial(_load_encoder, options)
    if options.engine == "local":
        from ..search.engines import LocalEngine

        yield LocalEngine(load())
        return

    from ..ray_pool import RayPool
    from ..search.engines import RayEngine

    with RayPool.open(load, cluster_of(options), device=options.device) as pool:
        yield RayEngine(pool, batch_size=options.batch_size)


def _load_encoder(options: IndexOptions) -> "RetrievalEncoder":
    from transformers.utils import logging

    from ..search.encoder import RetrievalEncoder

    logging.disable_progress_bar()
    return RetrievalEncoder.from_pretrained(
        options.model,
        device=options.device,
        dtype=options.dtype,
        batch_size=options.batch_size,
        num_workers=options.workers,
    )


@contextmanager
def _progress() -> "Iterator[partial[None]]":
    from tqdm import tqdm

    with tqdm(unit="image", disable=not sys.stderr.isatty()) as bar:
        yield bar.update


def _report(options: IndexOptions, counts: "UpdateCounts") -> int:
    """Says what was done. Returns the exit status, 1 if no image could be read."""
    parts = [
        f"{number:,} {name}"
        for name in ("new", "changed", "moved", "copied", "removed", "unchanged")
        if (number := getattr(counts, name))
    ]
    num_skipped = counts.skipped.total()
    if num_skipped:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.skipped.items()))
        parts.append(f"{num_skipped:,} skipped ({kinds})")
    say(_PROG, f"{options.output_dir}: {', '.join(parts) or 'no images'}")
    return 0 if counts.num_images else 1


COMMAND = Command(
    prog="blip-hf index",
    description="Indexes images for `blip-hf search`. The same command again encodes only what is new or has changed, notices"
    " moved and deleted files, and resumes a run that was killed.",
    options=IndexOptions,
    run=_run,
    resumes=True,
)

__all__ = ["COMMAND", "IndexOptions"]
