# SPDX-License-Identifier: BSD-3-Clause
"""Compares the files that options of a run name by their content: changed ones are found, and moved ones are the same."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .base import TrainingOptions

# For each value of an option, the digests of its files by their paths inside it, or `None` if it names no local file.
InputDigests = dict[str, list[dict[str, str] | None]]

_PATH_METAVARS = {"CHECKPOINT", "DIR", "FILE", "SOURCE"}
# What `from_pretrained` reads of a checkpoint.
_MODEL_FILES = re.compile(
    r".*\.(safetensors|bin|txt|model)|.*config\.json|tokenizer\.json|special_tokens_map\.json|.*\.index\.json"
)


def path_options(options: "TrainingOptions") -> set[str]:
    """Names of the options that take files, folders or names on the Hub."""
    return {each.name for each in fields(options) if each.metadata.get("metavar") in _PATH_METAVARS}


def digest_inputs(options: "TrainingOptions", names: Iterable[str]) -> InputDigests:
    """Returns the digests of the local files that options name: data, models, annotations and folders of images.

    Names on the Hub and drawn scenes have none: their names are compared.
    """
    digests = {}
    for name in names:
        values = [each for each in _as_list(getattr(options, name)) if each]
        split = getattr(options, "split", "train")
        found = [_digest_data(each, split) if name == "data" else _digest_path(Path(each)) for each in values]
        if any(each is not None for each in found):
            digests[name] = found
    return digests


def find_input_changes(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Says how an option of a run differs, of two commands with `"digests"`. A path with the same content is equal."""
    from ..data.source_digests import find_changes

    difference = [] if old[name] == new[name] else [f"{name} was {old[name]!r}, is {new[name]!r}"]
    paths, old_paths = _as_list(new[name]), _as_list(old[name])
    digests, old_digests = (_as_list(command.get("digests", {}).get(name)) for command in (new, old))
    if not len(paths) == len(old_paths) == len(digests) == len(old_digests):
        return difference
    changes: list[str] = []
    for path, old_path, found, old_found in zip(paths, old_paths, digests, old_digests, strict=True):
        is_known = found is not None and old_found is not None
        if path != old_path and not (is_known and found == old_found):
            return difference
        if is_known:
            changes += [f"{name}: {change}" for change in find_changes(_named(path, old_found), _named(path, found))]
    return changes


def _digest_data(source: str, split: str) -> dict[str, str] | None:
    from ..data.readers.hub import is_hub_name
    from ..data.readers.scenes import is_scenes
    from ..data.readers.sources import open_source
    from ..data.source_digests import digest_source

    path = Path(source).expanduser()
    if path.is_file() or is_hub_name(source) or is_scenes(source):
        return _digest_path(path)
    digests = digest_source(open_source(source, split=split))
    folder = path if path.is_dir() else os.path.commonpath([os.path.dirname(file) for file in digests])
    # The name of a table is not a path.
    return {os.path.relpath(file, folder) if os.path.exists(file) else file: digests[file] for file in digests}


def _digest_path(path: Path) -> dict[str, str] | None:
    from ..data.source_digests import digest_file, digest_listing

    path = path.expanduser()
    if path.is_file():
        return {".": digest_file(path)}
    if not path.is_dir():
        return None
    if (path / "config.json").is_file():
        files = sorted(file for file in path.iterdir() if _MODEL_FILES.fullmatch(file.name))
        return {file.name: digest_file(file) for file in files}
    return {".": digest_listing(path)}


def _named(path: str, digests: Mapping[str, str]) -> dict[str, str]:
    return {path if name == "." else f"{name} of {path}": digest for name, digest in digests.items()}


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


__all__ = ["InputDigests", "digest_inputs", "find_input_changes", "path_options"]
