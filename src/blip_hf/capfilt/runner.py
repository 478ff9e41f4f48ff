# SPDX-License-Identifier: BSD-3-Clause
"""Runs CapFilt over all shards of a source, in one process or several, which may be killed and started again.

A process locks a shard, captions and scores it, and writes its files; the scores are written last and mark the shard as
done. A shard without scores is done again, with the same bytes.
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
from ..locks import Locks
from .engine import CapFilt, Scored, join_tables
from .filters import Rule, find_cutoffs, keep_mask
from .refilter import write_kept
from .report import build_report
from .scores import RunFolder, is_whole_table, write_scores
from .settings import FREE_SETTINGS
from .writers import PairFormat, remove_partial_pairs, write_pairs


Totals = dict[str, Any]


def run_capfilt(
    engine: CapFilt,
    source: PathLike | Sequence[PathLike],
    out_dir: PathLike,
    *,
    image_root: PathLike | None = None,
    allow_outside: bool = False,
    shard_size: int = 1000,
    rule: Rule | None = None,
    format: PairFormat = "parquet",
    process_index: int = 0,
    num_processes: int = 1,
    show_progress: bool = True,
) -> Totals:
    """Captions, scores and filters a source, or resumes the run in `out_dir`.

    Several processes share the shards: each starts with its own part, then does what is left of the others, so the
    shards of a killed process are done too. The files do not depend on the number of processes.
    [`~blip_hf.capfilt.scores.RunFolder`] lists the files in `out_dir`.

    Args:
        engine (`CapFilt`):
            The models and their settings.
        source (`str`, `Path`, or a list of them):
            Pairs, as [`~blip_hf.data.readers.find_shards`] reads them.
        out_dir (`str` or `Path`):
            Output folder, the same for all processes.
        image_root (`str` or `Path`, *optional*):
            Folder that relative image paths start from.
        allow_outside (`bool`, *optional*, defaults to `False`):
            As in [`~blip_hf.data.readers.find_shards`].
        shard_size (`int`, *optional*, defaults to 1000):
            Records per shard, for sources that are not split into files.
        rule (`Rule`, *optional*):
            Texts to keep. Defaults to those with an ITM probability of at least 0.5. With `keep_share` the last process
            writes the pairs once all texts are scored.
        format (`str`, *optional*, defaults to `"parquet"`):
            Format of the pairs, see [`~blip_hf.capfilt.writers.write_pairs`].
        process_index (`int`, *optional*, defaults to 0):
            Index of this process.
        num_processes (`int`, *optional*, defaults to 1):
            Number of processes.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether the first process shows a progress bar.

    Returns:
        `dict`: the totals of [`~blip_hf.capfilt.report.build_report`].

    Raises:
        ValueError: If `out_dir` holds a run with other settings, or the source does not exist.
    """
    rule = Rule() if rule is None else rule
    run = _Run(engine, RunFolder(out_dir), rule, format)
    # Scores hold paths, which must not depend on the working directory.
    locations = _locations(source, image_root)
    shards = find_shards(**locations, allow_outside=allow_outside, shard_size=shard_size)
    settings = {
        **locations,
        "allow_outside": allow_outside,
        "shard_size": shard_size,
        "num_shards": len(shards),
        "models": engine.identities(),
        "capfilt": asdict(engine.settings),
        "rule": asdict(rule),
        "format": format,
    }
    summary = run.folder.summary
    numbers = range(len(shards))
    first = numbers[process_index::num_processes]
    order = [*first, *(number for number in numbers if number not in first)]
    is_shown = show_progress and process_index == 0
    locks = Locks(run.folder.locks_folder)
    with locks.hold("run", wait=True):
        _check_settings(settings, run.folder.settings)
    with _Progress.open(run.folder, len(shards), num_processes, is_shown) as progress:
        # The second round waits for shards that other processes hold, and does those of killed ones.
        for wait in (False, True):
            for shard in (shards[number] for number in order):
                if not run.is_done(shard):
                    with locks.hold(f"shard-{shard.name}", wait=wait) as is_held:
                        if is_held and not run.is_done(shard):
                            run.write_shard(shard, progress)
    with locks.hold("run", wait=True):
        if not summary.is_file():
            remove_partial(summary)
            if rule.keep_share is not None:
                write_kept(run.folder, rule, run.folder.pairs_folder, format)
            write_json(build_report(out_dir)["totals"], summary)
        locks.remove_files()
    return json.loads(summary.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class _Run:
    """Does the shards of a run."""

    engine: CapFilt
    folder: RunFolder
    rule: Rule
    format: PairFormat

    def is_done(self, shard: Shard) -> bool:
        scores = self.folder.scores(shard.name)
        return scores.is_file() and is_whole_table(scores)

    def write_shard(self, shard: Shard, progress: "_Progress") -> None:
        """Captions, scores and writes a shard that this process holds."""
        scores, skipped, pairs = (
            path(shard.name) for path in (self.folder.scores, self.folder.skipped, self.folder.pairs)
        )
        for path in (scores, skipped):
            remove_partial(path)
        remove_partial_pairs(pairs, self.format)
        cutoffs = None if self.rule.keep_share is not None else find_cutoffs(self.rule, list)
        batches = []
        for batch in self.engine.score_batches(shard.samples()):
            batches.append(batch)
            progress.add(batch, None if cutoffs is None else keep_mask(batch.table, self.rule, cutoffs).tolist())
        table = join_tables([batch.table for batch in batches])
        write_json([asdict(item) for batch in batches for item in batch.skipped], skipped)
        if cutoffs is not None:
            rows = table.filter(pa.array(keep_mask(table, self.rule, cutoffs)))
            models = json.loads(self.folder.settings.read_text(encoding="utf-8"))["models"]
            write_pairs(shard.samples(checks_images=False), rows, pairs, self.format, models=models)
        write_scores(table, scores)
        progress.finish_shard()


@dataclass
class _Progress:
    """Progress bar over the images of the run. Their number is estimated from the shards that this process has done."""

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
        with tqdm(unit=" images", desc="CapFilt", disable=not is_shown, smoothing=0.1) as bar:
            yield cls(bar, folder, num_shards, num_processes)

    def add(self, batch: Scored, is_kept: list[bool] | None) -> None:
        """Counts a batch, and its kept texts if they are known."""
        if is_kept is not None:
            sources = batch.table["source"].to_pylist()
            self.num_texts.update(sources)
            self.num_kept.update(source for source, decision in zip(sources, is_kept, strict=True) if decision)
            shares = {source: f"{self.num_kept[source] / self.num_texts[source]:.0%}" for source in self.num_texts}
            self.bar.set_postfix_str(" ".join(["kept", *(f"{name} {share}" for name, share in shares.items())]), False)
        self.bar.update(batch.num_images)

    def finish_shard(self) -> None:
        """Updates the estimated number of images."""
        self.num_done += 1
        if not self.bar.disable:
            num_left = self.num_shards - len(self.folder.score_files())
            self.bar.total = round(self.bar.n * (1 + num_left / self.num_processes / self.num_done))
            self.bar.refresh()


def _locations(source: PathLike | Sequence[PathLike], image_root: PathLike | None) -> dict[str, Any]:
    """Returns source and root as absolute paths."""
    is_one = isinstance(source, (str, os.PathLike))
    return {
        "source": make_absolute(source) if is_one else list(map(make_absolute, source)),
        "image_root": None if image_root is None else os.path.abspath(image_root),
    }


def _check_settings(settings: Mapping[str, Any], path: Path) -> None:
    """Writes the settings of a new run, or raises if they differ from those of the run that is resumed."""
    # JSON has lists for tuples.
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
    old, new = _flat(_read_settings(path)), _flat(settings)
    free = {f"capfilt.{name}" for name in FREE_SETTINGS}
    differences = [
        f"{name} was {old.get(name)!r}, is {value!r}"
        for name, value in new.items()
        if value != old.get(name) and name not in free
    ]
    if differences:
        raise ValueError(
            f"{path.parent} holds a run with other settings: {'; '.join(differences)}. Pass the same ones to"
            " resume it, or another output folder."
        )


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged, so the settings of its run are unknown. If this command is the same as that of the run,"
            " remove the file and run it again to continue; else pass another output folder."
        ) from error


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested settings to dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


__all__ = ["Totals", "run_capfilt"]
