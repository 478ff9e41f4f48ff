# SPDX-License-Identifier: BSD-3-Clause
"""Shares the shards of a run among the actors of a Ray cluster. Each actor loads the models once.

Ray restarts an actor whose process or node died, and repeats its shard. All nodes need this package, and the checkpoints,
the source and the output folder at the same paths.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

from ...data.readers import Shard, find_shards
from ...data.readers.records import PathLike
from ...locks import Locks
from ...ray_pool import MAX_RESTARTS, RayCluster, RayPool
from ..engine import CapFilt
from ..filters import Rule
from ..progress import Counts, Progress
from ..run import Run, Totals, without_names
from ..settings import CapFiltSettings
from ..shard_writer import write_shard
from ..writers import Models, PairFormat


def run_capfilt_on_ray(
    captioner: str | os.PathLike[str],
    matcher: str | os.PathLike[str],
    source: PathLike | Sequence[PathLike],
    out_dir: PathLike,
    *,
    settings: CapFiltSettings | None = None,
    device: str | None = None,
    dtype: str = "float32",
    cluster: RayCluster | None = None,
    image_root: PathLike | None = None,
    allow_outside: bool = False,
    shard_size: int = 1000,
    rule: Rule | None = None,
    format: PairFormat = "parquet",
    show_progress: bool = True,
) -> Totals:
    """Same as [`~blip_hf.capfilt.runner.run_capfilt`] with [`~blip_hf.capfilt.engine.CapFilt.from_pretrained`], on Ray.

    The files are those of a run by one process with as many threads as `num_cpus`. If Ray is not initialised, this
    connects to the cluster, and disconnects at the end.

    Args:
        captioner (`str` or `os.PathLike`):
            Folder or model id of the captioner.
        matcher (`str` or `os.PathLike`):
            Folder or model id of the filter.
        source, out_dir, image_root, allow_outside, shard_size, rule, format, show_progress:
            As in [`~blip_hf.capfilt.runner.run_capfilt`].
        settings, device, dtype:
            As in [`~blip_hf.capfilt.engine.CapFilt.from_pretrained`].
        cluster (`RayCluster`, *optional*):
            The cluster and the resources of each actor.

    Returns:
        `dict`: the totals of [`~blip_hf.capfilt.report.build_report`].

    Raises:
        ImportError: If Ray is not installed.
        ValueError: If `out_dir` holds a run with other settings or of other data, another process writes to it, or the
            source does not exist.
        ChildProcessError: If Ray gives up on a shard because its actors died.
    """
    run = Run.create(out_dir, source, image_root, allow_outside, shard_size, rule, format)
    names = {"captioner": os.fspath(captioner), "filter": os.fspath(matcher)}
    load = partial(ShardWorker, run, *names.values(), device=device, dtype=dtype, settings=settings)
    locks = Locks(run.folder.locks_folder)
    with _hold_run(run, locks), RayPool.open(load, cluster, device=device) as pool:
        identities, resolved = pool.call(ShardWorker.identify, what="the models")
        identities = {role: {**identity, "name": names[role]} for role, identity in identities.items()}
        shards, identities = run.start(identities, resolved)
        todo = [shard.name for shard in shards if not run.is_done(shard)]
        with Progress.open(run.folder, len(shards), 1, show_progress) as progress:
            for _, batches in pool.map(ShardWorker.write_shard, todo, identities):
                for counts in batches:
                    progress.add(counts)
                progress.finish_shard()
        totals = run.finish()
        locks.remove_files()
    return totals


class ShardWorker:
    """Writes shards on a node."""

    def __init__(
        self,
        run: Run,
        captioner: str,
        matcher: str,
        *,
        device: str | None,
        dtype: str,
        settings: CapFiltSettings | None,
    ) -> None:
        self.run = run
        self.paths = (captioner, matcher)
        self.options: dict[str, Any] = {"device": device, "dtype": dtype, "settings": settings}

    @cached_property
    def engine(self) -> CapFilt:
        """The models."""
        return CapFilt.from_pretrained(*self.paths, **self.options)

    @cached_property
    def identities(self) -> Models:
        """What identifies the models."""
        return self.engine.identities()

    @cached_property
    def shards(self) -> dict[str, Shard]:
        """The shards of the source by name."""
        run = self.run
        shards = find_shards(
            run.source, image_root=run.image_root, allow_outside=run.allow_outside, shard_size=run.shard_size
        )
        return {shard.name: shard for shard in shards}

    def identify(self) -> tuple[Models, CapFiltSettings]:
        """The identities of the models, and the settings completed by the captioner's own."""
        return self.identities, self.engine.settings

    def write_shard(self, name: str, models: Models) -> list[Counts]:
        """Writes a shard, unless an actor that died had finished it. Returns the counts of its batches."""
        if without_names(self.identities) != without_names(models):
            raise ValueError(
                f"{' or '.join(self.paths)} holds other weights on the node {os.uname().nodename} than where the run"
                " started. Pass folders that are the same on all nodes."
            )
        counts: list[Counts] = []
        if not self.run.is_done(self.shards[name]):
            write_shard(self.engine, self.run, models, self.shards[name], counts.append)
        return counts


@contextmanager
def _hold_run(run: Run, locks: Locks) -> Iterator[None]:
    """Locks the run for this driver. Raises if a driver or a process of the local engine works on it."""
    with locks.hold("run", wait=False) as is_held:
        if not is_held or any(_is_locked(locks, path.stem) for path in locks.folder.glob("shard-*.lock")):
            raise ValueError(
                f"Another process writes to {run.folder.root}. Wait until it ends, or pass another output folder."
            )
        yield


def _is_locked(locks: Locks, name: str) -> bool:
    with locks.hold(name, wait=False) as is_held:
        return not is_held


__all__ = ["MAX_RESTARTS", "RayCluster", "ShardWorker", "run_capfilt_on_ray"]
