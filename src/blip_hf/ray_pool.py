# SPDX-License-Identifier: BSD-3-Clause
"""Maps a function of a loaded worker over shards on a Ray cluster. Each actor loads its worker (its models) once.

Ray restarts an actor whose process or node died, and repeats its shard. All nodes need this package, and the checkpoints and
files that workers open at the same paths. CapFilt, captioning and indexing use it.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from transformers.utils import logging


if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

Worker = TypeVar("Worker")
Shard = TypeVar("Shard")
Result = TypeVar("Result")

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


class ShardActor(Generic[Worker]):
    """Applies functions to a worker on a node. The first one loads it, and so reports what is wrong with it."""

    def __init__(self, load: Callable[[], Worker], folder: str, num_threads: int) -> None:
        self.load = load
        # That of the driver, for relative paths. A node may lack it if all paths are absolute.
        with suppress(OSError):
            os.chdir(folder)
        logging.disable_progress_bar()
        # The number of threads changes the last digits of scores.
        torch.set_num_threads(num_threads)

    @cached_property
    def worker(self) -> Worker:
        """The worker."""
        return self.load()

    def apply(self, function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
        """Calls the function with the worker and the arguments."""
        return function(self.worker, *arguments)


class RayPool(Generic[Worker]):
    """The actors of a run. They start when there is a shard for them. Use [`RayPool.open`].

    Example:
        >>> with RayPool.open(load_model, RayCluster(address="auto")) as pool:  # doctest: +SKIP
        ...     digest = pool.call(fingerprint)
        ...     for shard, result in pool.map(process_shard, shards):
        ...         print(shard, result)
    """

    def __init__(
        self, ray: Any, load: Callable[[], Worker], cluster: RayCluster, *, num_actors: int, num_gpus: float
    ) -> None:
        self.num_actors = num_actors
        self._ray = ray
        self._load = load
        self._num_threads = cluster.num_cpus
        self._actor_class = ray.remote(
            num_cpus=cluster.num_cpus, num_gpus=num_gpus, max_restarts=MAX_RESTARTS, max_task_retries=_UNLIMITED
        )(ShardActor)
        self._actors: list[ActorHandle] = []
        self._idle: list[ActorHandle] = []

    @classmethod
    @contextmanager
    def open(
        cls, load: Callable[[], Worker], cluster: RayCluster | None = None, *, device: str | None = None
    ) -> "Iterator[RayPool[Worker]]":
        """Connects to the cluster within the block, unless Ray is initialised already. Ends the actors after it.

        Args:
            load (`Callable`):
                Loads the worker. It can be pickled, as can all functions, shards and results.
            cluster (`RayCluster`, *optional*):
                The cluster and the resources of each actor.
            device (`str`, *optional*):
                Device of the worker: actors on `"cpu"` take no GPU by default.

        Raises:
            ImportError: If Ray is not installed.
            ConnectionError: If there is no cluster at the address.
        """
        ray, cluster = _import_ray(), cluster or RayCluster()
        with _connected(ray, cluster.address):
            num_actors, num_gpus = cluster.size(ray.cluster_resources(), device)
            pool = cls(ray, load, cluster, num_actors=num_actors, num_gpus=num_gpus)
            try:
                yield pool
            finally:
                pool.close()

    def call(self, function: Callable[..., Result], *arguments: Any, what: str = "the first task") -> Result:
        """Calls `function(worker, *arguments)` on one actor, and returns its result or raises its error."""
        actor = self._take_actor()
        result = self._result(actor.apply.remote(function, arguments), what)
        self._idle.append(actor)
        return result

    def map(
        self, function: Callable[..., Result], shards: Iterable[Shard], *arguments: Any, in_order: bool = False
    ) -> Iterator[tuple[Shard, Result]]:
        """Calls `function(worker, shard, *arguments)` for each shard, and yields the shard with its result.

        An actor takes the next shard when it is idle, so slow nodes get fewer. `shards` are read when they are given out.

        Args:
            function (`Callable`):
                A function of a module that all nodes can import. Ray may repeat it for a shard.
            shards (`Iterable`):
                The shards. `str(shard)` names one in errors.
            *arguments:
                More arguments of each call.
            in_order (`bool`, *optional*, defaults to `False`):
                Whether to yield the shards in order, or each as it ends. In order, the results after a slow shard wait in
                memory.

        Raises:
            ChildProcessError: If Ray gives up on a shard because its actors died.
        """
        results = self._map(function, shards, arguments)
        return (item for _, item in (_ordered(results) if in_order else results))

    def close(self) -> None:
        """Ends the actors."""
        self._stop(self._actors)

    def _map(
        self, function: Callable[..., Result], shards: Iterable[Shard], arguments: tuple[Any, ...]
    ) -> Iterator[tuple[int, tuple[Shard, Result]]]:
        """The shards as they end, each with its position."""
        self._stop([actor for actor in self._actors if actor not in self._idle])  # of a map that was left early
        running: dict[ObjectRef, tuple[ActorHandle, int, Shard]] = {}
        todo = enumerate(shards)
        while True:
            while len(running) < self.num_actors and (item := next(todo, None)) is not None:
                position, shard = item
                actor = self._take_actor()
                running[actor.apply.remote(function, (shard, *arguments))] = actor, position, shard
            if not running:
                return
            # Their resources may be all that is left for an actor whose node died, and which holds a shard.
            self._stop(self._idle)
            (done,), _ = self._ray.wait(list(running), num_returns=1)
            actor, position, shard = running.pop(done)
            result = self._result(done, f"the shard {shard}")
            self._idle.append(actor)
            yield position, (shard, result)

    def _take_actor(self) -> "ActorHandle":
        """An idle actor, or a new one."""
        if self._idle:
            return self._idle.pop()
        actor = self._actor_class.remote(self._load, os.getcwd(), self._num_threads)
        self._actors.append(actor)
        return actor

    def _stop(self, actors: "Iterable[ActorHandle]") -> None:
        for actor in list(actors):
            self._ray.kill(actor)
            self._actors.remove(actor)
        self._idle = [actor for actor in self._idle if actor in self._actors]

    def _result(self, reference: "ObjectRef", what: str) -> Any:
        """The result of a task, or the error that it raised."""
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except exceptions.RayTaskError as error:
            raise error.cause from error
        except exceptions.RayActorError as error:
            raise ChildProcessError(f"Ray gave up on {what}, because its actor {_fate(str(error))}") from error


def _fate(error: str) -> str:
    """What happened to an actor, and what to do."""
    if "actor never ran" in error:
        return (
            "never ran. Set RAY_AUTH_MODE to the same value for the nodes and for this command: one of them may use a token"
            " and the other none."
        )
    return (
        f"died ({error.splitlines()[0]}), and Ray starts it again up to {MAX_RESTARTS} times. The logs of the nodes in"
        " /tmp/ray/session_latest/logs say why. The same command resumes the run."
    )


def _ordered(results: Iterable[tuple[int, Result]]) -> Iterator[tuple[int, Result]]:
    """Sorts numbered results as they come.

    Example:
        >>> list(_ordered([(1, "b"), (0, "a"), (2, "c")]))
        [(0, 'a'), (1, 'b'), (2, 'c')]
    """
    waiting: dict[int, Result] = {}
    position = 0
    for number, result in results:
        waiting[number] = result
        while position in waiting:
            yield position, waiting.pop(position)
            position += 1


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """Connects to a cluster, unless the caller has done so."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that this starts
    try:
        with _own_sigterm():
            ray.init(address=address, include_dashboard=False, logging_level=logging.WARNING)
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Puts the handler of SIGTERM back: that of Ray ends the process without a word, also in a later training."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError("--engine ray needs Ray, which is not installed: pip install 'blip_hf[ray]'") from error
    return ray


__all__ = ["MAX_RESTARTS", "RayCluster", "RayPool", "ShardActor"]
