# SPDX-License-Identifier: BSD-3-Clause
"""What all engines share: the inputs of a run, the check of a run that is resumed, and the totals at its end."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers

from .. import __version__
from ..data.readers import cut_shards
from ..data.readers.records import PathLike
from ..data.readers.samples import Shard
from ..data.readers.sources import make_absolute, open_source
from ..data.source_digests import digest_source
from ..files import remove_partial, write_json
from .filters import Rule
from .output_folder import refuse_source_folder
from .refilter import write_kept
from .report import build_report
from .scores import RunFolder, is_whole_table
from .settings import FREE_SETTINGS, CapFiltSettings
from .source_digests import check_source
from .writers import Models, PairFormat


Totals = dict[str, Any]

# A checkpoint is identified by its digests; the same folder can be passed by several paths.
_NOT_COMPARED = {
    *(f"capfilt.{name}" for name in FREE_SETTINGS),
    "models.captioner.name",
    "models.filter.name",
}


@dataclass(frozen=True)
class Run:
    """Inputs of a run. Paths are absolute, because scores hold paths and actors have other working directories."""

    folder: RunFolder
    source: str | list[str]
    image_root: str | None
    allow_outside: bool
    shard_size: int
    rule: Rule
    format: PairFormat

    @classmethod
    def create(
        cls,
        out_dir: PathLike,
        source: PathLike | Sequence[PathLike],
        image_root: PathLike | None,
        allow_outside: bool,
        shard_size: int,
        rule: Rule | None,
        format: PairFormat,
    ) -> "Run":
        """Makes the paths absolute. Raises `ValueError` if the output folder holds the source."""
        if isinstance(source, (str, os.PathLike)):
            absolute: str | list[str] = make_absolute(source)
        else:
            absolute = list(map(make_absolute, source))
        refuse_source_folder(out_dir, absolute)
        root = None if image_root is None else os.path.abspath(image_root)
        return cls(
            RunFolder(os.path.abspath(out_dir)), absolute, root, allow_outside, shard_size, rule or Rule(), format
        )

    def start(self, models: Models, settings: CapFiltSettings) -> tuple[list[Shard], Models]:
        """Writes the settings of a new run, or checks those of the run that is resumed.

        Returns the shards, and the models as the run was started with.
        """
        readers = open_source(self.source, image_root=self.image_root, allow_outside=self.allow_outside)
        shards = cut_shards(readers, self.shard_size)
        own = {
            "source": self.source,
            "image_root": self.image_root,
            "allow_outside": self.allow_outside,
            "shard_size": self.shard_size,
            "num_shards": len(shards),
            "models": models,
            "capfilt": asdict(settings),
            "rule": asdict(self.rule),
            "format": self.format,
        }
        # JSON has lists for tuples.
        return shards, _write_or_check(self.folder, json.loads(json.dumps(own)), digest_source(readers))

    def is_done(self, shard: Shard) -> bool:
        """Whether all files of a shard are written."""
        scores = self.folder.scores(shard.name)
        return scores.is_file() and is_whole_table(scores)

    def finish(self) -> Totals:
        """Writes the totals once all shards are done, with `keep_share` also the pairs."""
        summary = self.folder.summary
        if not summary.is_file():
            remove_partial(summary)
            if self.rule.keep_share is not None:
                write_kept(self.folder, self.rule, self.folder.pairs_folder, self.format)
            write_json(build_report(self.folder.root)["totals"], summary)
        return json.loads(summary.read_text(encoding="utf-8"))


def without_names(models: Mapping[str, Mapping[str, str]]) -> Models:
    """Returns what identifies the models: all but their paths."""
    return {role: {key: value for key, value in model.items() if key != "name"} for role, model in models.items()}


def _write_or_check(folder: RunFolder, settings: dict[str, Any], digests: dict[str, str]) -> Models:
    path = folder.settings
    if not path.is_file():
        for partial in (path, folder.source_digests):
            remove_partial(partial)
        versions = {
            "blip_hf": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
        }
        write_json(digests, folder.source_digests)
        write_json({**settings, "versions": versions}, path)
        return settings["models"]
    old = _read_settings(path)
    if all(old[name] == settings[name] for name in ("source", "image_root")):
        check_source(folder, digests)
    _check_settings(path.parent, old, settings)
    return old["models"]


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged, so the settings of its run are unknown. If this command is the same as that of the run,"
            " remove the file and run it again to continue; else pass another output folder."
        ) from error


def _check_settings(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    old, new = _flat(old), _flat(new)
    differences = [
        f"{name} was {old[name]!r}, is {value!r}"
        for name, value in new.items()
        # A run of an earlier version lacks the newer settings.
        if name in old and value != old[name] and name not in _NOT_COMPARED
    ]
    if differences:
        raise ValueError(
            f"{folder} holds a run with other settings: {'; '.join(differences)}. Pass the same ones to"
            " resume it, or another output folder."
        )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested settings to dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


__all__ = ["Run", "Totals", "without_names"]
