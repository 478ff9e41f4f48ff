# SPDX-License-Identifier: BSD-3-Clause
"""Shares the shards of a run among the actors of a Ray cluster. Each actor loads the models once.

Ray restarts an actor whose process or node died, and repeats its shard. All nodes need this package, and the checkpoints,
the source and the output folder at the same paths.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from ...data.readers import Shard, find_shards
from ...data.readers.records import PathLike
from ...locks import Locks
from ..engine import CapFilt
from ..filters import Rule
from ..progress import Counts, Progress
from ..run import Run, Totals, without_names
from ..settings import CapFiltSettings
from ..shard_writer import write_shard
from ..writers import Models, PairFormat


if TYPE_CHECKING:
    import ray
    from ray.actor import ActorHandle

MAX_RESTARTS = 20
"""How often Ray starts an actor again, for example on another node. A shard that always kills its actor ends the run."""

# Retries are bounded by the restarts: a few are spent on a node that died before Ray notices it.
_UNLIMITED = -1


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """The Ray cluster of a run, and the resources of each actor.

    Args:
        address (`str`, *optional*):
            Address of the cluster, as `ray.init` takes it. Defaults to `RAY_ADDRESS`, else to a cluster that runs on this
            machine, else to a new one on this machine.
        num_actors (`int`, *optional*):
            Number of actors. Defaults to as many as the resources of the cluster allow.
        num_cpus (`int`, *optional*, defaults to 1):
            CPUs of an actor: its number of threads.
        num_gpus (`float`, *optional*):
            GPUs of an actor. Defaults to 1 if the cluster has a GPU and the device is not the CPU, else to 0.

    Raises:
        ValueError: If a value is out of its range.
    """

    address: str | None = None
    num_actors: int | None = None
    num_cpus: int = 1
    num_gpus: float | None = None

    def __post_init__(self) -> None:
        for name, minimum in (("num_actors", 1), ("num_cpus", 1), ("num_gpus", 0)):
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"{name}={value} is too small. Pass {minimum} or more.")

    def size(self, resources: Mapping[str, float], device: str | None = None) -> tuple[int, float]:
        """Number of actors, and GPUs of each, on a cluster with these resources.

        Example:
            >>> RayCluster().size({"CPU": 16, "GPU": 4}), RayCluster(num_cpus=4).size({"CPU": 16})
            ((4, 1), (4, 0))
        """
        has_gpus = resources.get("GPU", 0) > 0 and device != "cpu"
        num_gpus = int(has_gpus) if self.num_gpus is None else self.num_gpus
        num_fitting = resources.get("CPU", 0) // self.num_cpus
        if num_gpus:
            num_fitting = min(num_fitting, resources.get("GPU", 0) // num_gpus)
        return self.num_actors or max(1, int(num_fitting)), num_gpus


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
    ray, cluster = _import_ray(), cluster or RayCluster()
    run = Run.create(out_dir, source, image_root, allow_outside, shard_size, rule, format)
    names = {"captioner": os.fspath(captioner), "filter": os.fspath(matcher)}
    models = (*map(_absolute, names.values()), device, dtype, settings)
    locks = Locks(run.folder.locks_folder)
    with _hold_run(run, locks), _connected(ray, cluster.address):
        num_actors, num_gpus = cluster.size(ray.cluster_resources(), device)
        new_actor = ray.remote(
            num_cpus=cluster.num_cpus, num_gpus=num_gpus, max_restarts=MAX_RESTARTS, max_task_retries=_UNLIMITED
        )(ShardActor)
        actors = [new_actor.remote(run, *models, num_threads=cluster.num_cpus)]
        identities, resolved = _result(ray, actors[0].identify.remote(), "the models")
        identities = {role: {**identity, "name": names[role]} for role, identity in identities.items()}
        shards, identities = run.start(identities, resolved)
        todo = [shard.name for shard in shards if not run.is_done(shard)]
        for _ in range(min(num_actors, len(todo)) - 1):
            actors.append(new_actor.remote(run, *models, num_threads=cluster.num_cpus))
        with Progress.open(run.folder, len(shards), 1, show_progress) as progress:
            for batches in _write_shards(ray, actors, todo, identities):
                for counts in batches:
                    progress.add(counts)
                progress.finish_shard()
        totals = run.finish()
        locks.remove_files()
    return totals


class ShardActor:
    """Writes shards on a node. Models and source are opened by the first task, which reports what is wrong with them."""

    def __init__(
        self,
        run: Run,
        captioner: str,
        matcher: str,
        device: str | None,
        dtype: str,
        settings: CapFiltSettings | None,
        *,
        num_threads: int,
    ) -> None:
        self.run = run
        self.paths = (captioner, matcher)
        self.options = {"device": device, "dtype": dtype, "settings": settings}
        logging.disable_progress_bar()
        # The number of threads changes the last digits of scores.
        torch.set_num_threads(num_threads)

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


def _write_shards(
    ray: Any, actors: Iterable["ActorHandle"], names: Iterable[str], models: Models
) -> Iterator[list[Counts]]:
    """Gives each actor that is idle the next shard, and yields the counts of each shard."""
    idle, todo = list(actors), deque(names)
    running: dict[ray.ObjectRef, tuple[ActorHandle, str]] = {}
    while todo or running:
        while todo and idle:
            actor, name = idle.pop(), todo.popleft()
            running[actor.write_shard.remote(name, models)] = actor, name
        # Its resources may be all that is left for an actor whose node died, and which holds a shard.
        while idle:
            ray.kill(idle.pop())
        (done,), _ = ray.wait(list(running), num_returns=1)
        actor, name = running.pop(done)
        yield _result(ray, done, f"the shard {name}")
        idle.append(actor)


def _result(ray: Any, reference: "ray.ObjectRef", what: str) -> Any:
    """The result of a task, or the error that it raised."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayActorError as error:
        raise ChildProcessError(
            f"Ray gave up on {what}, because its actor died {MAX_RESTARTS + 1} times ({str(error).splitlines()[0]}). The"
            " logs of the nodes in /tmp/ray/session_latest/logs say why. The same command resumes the run."
        ) from error


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


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """Connects to a cluster, unless the caller has done so."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that this starts
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, include_dashboard=False, logging_level=logging.WARNING)
        yield
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray leaves its own, which a later training would not replace


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError("--engine ray needs Ray, which is not installed: pip install 'blip_hf[ray]'") from error
    return ray


def _absolute(checkpoint: str) -> str:
    """Actors have another working directory."""
    return os.path.abspath(checkpoint) if os.path.exists(checkpoint) else checkpoint


__all__ = ["MAX_RESTARTS", "RayCluster", "ShardActor", "run_capfilt_on_ray"]
