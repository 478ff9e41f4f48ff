# SPDX-License-Identifier: BSD-3-Clause
"""`--engine`, and the options of a Ray cluster that commands share."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .errors import UsageError
from .launcher import launched_process


if TYPE_CHECKING:
    from ..ray_pool import RayCluster


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What shares the work, and the resources of `--engine ray`."""

    engine: Literal["local", "ray"] = field(
        default="local",
        metadata={"help": "What shares the work: this machine (local), or the actors of a Ray cluster (ray)"},
    )
    address: str | None = field(
        default=None, metadata={"help": "Address of the Ray cluster (default: RAY_ADDRESS, else this machine)"}
    )
    num_actors: int | None = field(
        default=None, metadata={"help": "Actors of Ray (default: as many as the cluster has resources for)"}
    )
    num_cpus: int | None = field(default=None, metadata={"help": "CPUs and threads of each actor (default: 1)"})
    num_gpus: float | None = field(
        default=None, metadata={"help": "GPUs of each actor (default: 1 if the cluster has one, else 0)"}
    )


_RAY_OPTIONS = ("address", "num_actors", "num_cpus", "num_gpus")


def engine_option(name: str) -> Any:
    """The same option in a dataclass that cannot inherit [`EngineOptions`], which is frozen."""
    option = EngineOptions.__dataclass_fields__[name]
    return field(default=option.default, metadata=option.metadata)


def check_engine(options: Any, *more_ray_options: str) -> None:
    """Raises for options of Ray without it, and for Ray under a launcher."""
    _, num_processes = launched_process()
    if options.engine == "ray" and num_processes > 1:
        raise UsageError(
            "--engine ray starts its own processes. Run the command once, without torchrun or accelerate."
        )
    given = [name for name in (*_RAY_OPTIONS, *more_ray_options) if getattr(options, name) is not None]
    if options.engine == "local" and given:
        raise UsageError(f"--{given[0]} is an option of Ray. Add --engine ray, or remove it.")


def cluster_of(options: Any) -> "RayCluster":
    """The cluster that the options describe."""
    from ..ray_pool import RayCluster

    given = {name: getattr(options, name) for name in _RAY_OPTIONS}
    return RayCluster(**{name: value for name, value in given.items() if value is not None})


__all__ = ["EngineOptions", "check_engine", "cluster_of", "engine_option"]
