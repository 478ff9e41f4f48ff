# SPDX-License-Identifier: BSD-3-Clause
"""A CapFilt run over all shards of a source, by one process or many, that may be killed at any time and started again.

A shard is claimed, captioned, scored and written; its scores come last and say that it is whole. Nothing else is
remembered: whoever finds a shard without scores and unclaimed does it, in the same bytes.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import accelerate
import pyarrow as pa
import torch
import transformers
from tqdm import tqdm

from .. import __version__
from ..data.readers import find_shards
from ..data.readers.records import PathLike
from ..data.readers.samples import Shard
from ..data.readers.sources import make_absolute
from ..files import remove_partial, write_json
from ..locks import open_locks
from .engine import CapFilt, Scored, join_tables
from .filters import Rule, find_cutoffs, keep_mask
from .refilter import write_kept
from .report import build_report
from .scores import RunFolder, write_scores
from .settings import FREE_SETTINGS
from .writers import PairFormat, remove_partial_pairs, write_pairs


Totals = dict[str, Any]


def run_capfilt(
    engine: CapFilt,
    source: PathLike | Sequence[PathLike],
    out_dir: PathLike,
    *,
    image_root: PathLike | None = None,
    shard_size: int = 1000,
    rule: Rule | None = None,
    format: PairFormat = "parquet",
    process_index: int = 0,
    num_processes: int = 1,
    show_progress: bool = True,
) -> Totals:
    """Captions, scores and filters a source, and goes on where an earlier run in the same folder has stopped.

    Processes share the shards: each starts with those of its own share, helps with those of others, and waits for what
    others still hold, so that the shards of one that dies are done by those that are left. The files are the same
    whatever their number. `out_dir` is laid out as [`~blip_hf.capfilt.scores.RunFolder`] says, with `summary.json`.

    Args:
        engine (`CapFilt`):
            The models and their settings.
        source (`str`, `Path`, or a list of them):
            Pairs, as [`~blip_hf.data.readers.find_shards`] takes them, and so are the next two.
        out_dir (`str` or `Path`):
            Where to write; all processes see the same folder.
        image_root (`str` or `Path`, *optional*):
            Folder that relative image paths start from.
        shard_size (`int`, *optional*, defaults to 1000):
            Records of a shard, where files do not make it.
        rule (`Rule`, *optional*):
            What to keep; texts of an ITM probability of at least 0.5 by default. A share to keep is decided on when all
            is scored, so the pairs are written by the last process.
        format (`str`, *optional*, defaults to `"parquet"`):
            Of the pairs, see [`~blip_hf.capfilt.writers.write_pairs`].
        process_index (`int`, *optional*, defaults to 0):
            Number of this process.
        num_processes (`int`, *optional*, defaults to 1):
            How many there are.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a bar, on the first process.

    Returns:
        `dict`: the totals, as [`~blip_hf.capfilt.report.build_report`] counts them.

    Raises:
        ValueError: If `out_dir` holds a run with other settings, or there is no such source.
    """
    rule = Rule() if rule is None else rule
    run = _Run(engine, RunFolder(out_dir), rule, format)
    # Scores hold paths: these must not depend on the folder that a process was started in.
    locations = _locations(source, image_root)
    shards = find_shards(locations["source"], image_root=locations["image_root"], shard_size=shard_size)
    settings = {
        **locations,
        "shard_size": shard_size,
        "num_shards": len(shards),
        "models": engine.identities(),
        "capfilt": asdict(engine.settings),
        "rule": asdict(rule),
        "format": format,
    }
    summary = Path(out_dir, "summary.json")
    numbers = range(len(shards))
    first = numbers[process_index::num_processes]
    order = [*first, *(number for number in numbers if number not in first)]
    is_shown = show_progress and process_index == 0
    with open_locks(Path(out_dir, "claims.lock")) as claims:
        with claims.claim(len(shards), wait=True):
            _check_settings(settings, run.folder.settings)
        with _Progress.open(run.folder, len(shards), num_processes, is_shown) as progress:
            # A second round finds only what others hold, or held until they died.
            for wait in (False, True):
                for number in order:
                    if not run.is_whole(shards[number]):
                        with claims.claim(number, wait=wait) as is_held:
                            if is_held and not run.is_whole(shards[number]):
                                run.write_shard(shards[number], progress)
        with claims.claim(len(shards), wait=True):
            if not summary.is_file():
                remove_partial(summary)
                if rule.keep_share is not None:
                    write_kept(run.folder, rule, run.folder.pairs_folder, format)
                write_json(build_report(out_dir)["totals"], summary)
    return json.loads(summary.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class _Run:
    """What it takes to do a shard."""

    engine: CapFilt
    folder: RunFolder
    rule: Rule
    format: PairFormat

    def is_whole(self, shard: Shard) -> bool:
        return self.folder.scores(shard.name).is_file()

    def write_shard(self, shard: Shard, progress: "_Progress") -> None:
        """Does a shard that this process has claimed."""
        scores, faults, pairs = (
            path(shard.name) for path in (self.folder.scores, self.folder.faults, self.folder.pairs)
        )
        for path in (scores, faults):
            remove_partial(path)
        remove_partial_pairs(pairs, self.format)
        cutoffs = None if self.rule.keep_share is not None else find_cutoffs(self.rule, list)
        batches = []
        for batch in self.engine.score_batches(shard.samples()):
            batches.append(batch)
            progress.add(batch, None if cutoffs is None else keep_mask(batch.table, self.rule, cutoffs).tolist())
        table = join_tables([batch.table for batch in batches])
        write_json([asdict(fault) for batch in batches for fault in batch.faults], faults)
        if cutoffs is not None:
            rows = table.filter(pa.array(keep_mask(table, self.rule, cutoffs)))
            models = json.loads(self.folder.settings.read_text(encoding="utf-8"))["models"]
            write_pairs(shard.samples(checks_images=False), rows, pairs, self.format, models=models)
        write_scores(table, scores)
        progress.finish_shard()


@dataclass
class _Progress:
    """A bar over the images of the whole run: their number is guessed from the shards that this process has done."""

    bar: tqdm
    folder: RunFolder
    num_shards: int
    num_processes: int
    num_done: int = 0
    num_texts: Counter[str] = field(default_factory=Counter)
    num_kept: Counter[str] = field(default_factory=Counter)

    @classmethod
    @contextmanager
    def open(cls, folder: RunFolder, num_shards: int, num_processes: int, is_shown: bool) -> Iterator["_Progress"]:
        """A bar that goes when the block ends."""
        with tqdm(unit=" images", desc="CapFilt", disable=not is_shown, smoothing=0.1) as bar:
            yield cls(bar, folder, num_shards, num_processes)

    def add(self, batch: Scored, is_kept: list[bool] | None) -> None:
        """Counts a batch, and the texts of it that are kept where that is known."""
        if is_kept is not None:
            sources = batch.table["source"].to_pylist()
            self.num_texts.update(sources)
            self.num_kept.update(source for source, decision in zip(sources, is_kept, strict=True) if decision)
            shares = {source: f"{self.num_kept[source] / self.num_texts[source]:.0%}" for source in self.num_texts}
            self.bar.set_postfix_str(" ".join(["kept", *(f"{name} {share}" for name, share in shares.items())]), False)
        self.bar.update(batch.num_images)

    def finish_shard(self) -> None:
        """Guesses anew how many images this process has still to do."""
        self.num_done += 1
        if not self.bar.disable:
            num_left = self.num_shards - len(self.folder.score_files())
            self.bar.total = round(self.bar.n * (1 + num_left / self.num_processes / self.num_done))
            self.bar.refresh()


def _locations(source: PathLike | Sequence[PathLike], image_root: PathLike | None) -> dict[str, Any]:
    """Source and root as they are found from any working directory."""
    is_one = isinstance(source, (str, os.PathLike))
    return {
        "source": make_absolute(source) if is_one else list(map(make_absolute, source)),
        "image_root": None if image_root is None else os.path.abspath(image_root),
    }


def _check_settings(settings: Mapping[str, Any], path: Path) -> None:
    """Writes the settings of a new run, and refuses those that would mix with another run's."""
    # As JSON has them: with lists for tuples.
    settings = json.loads(json.dumps(settings))
    if not path.is_file():
        remove_partial(path)
        versions = {
            "blip_hf": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
        }
        write_json({**settings, "versions": versions}, path)
        return
    old, new = (_flat(values) for values in (json.loads(path.read_text(encoding="utf-8")), settings))
    free = {f"capfilt.{name}" for name in FREE_SETTINGS}
    differences = [
        f"{name} was {old.get(name)!r}, is {value!r}"
        for name, value in new.items()
        if value != old.get(name) and name not in free
    ]
    if differences:
        raise ValueError(
            f"{path.parent} holds a run with other settings: {'; '.join(differences)}. Pass the same ones to go on with"
            " it, or another folder to write to."
        )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings of settings by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


__all__ = ["Totals", "run_capfilt"]
