# SPDX-License-Identifier: BSD-3-Clause
"""Arrow files in the cache of `datasets`, which hold the records of files in another format.

A second load maps the file into memory. A file that has changed is read again.
"""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from transformers.utils import logging

from ...files import atomic_write, write_json
from ...locks import Locks
from ..skips import SkipCounts
from .remote import RemoteFile
from .usable import LoadedFile, recorded_files


logger = logging.get_logger(__name__)

# Changes with the content of the Arrow files.
VERSION = 3


def cached_table(readers: Sequence[Any], write: Callable[[Path], None], *, key: str = "") -> Dataset:
    """The Arrow file of the records of readers, memory-mapped.

    Args:
        readers (sequence of readers with a `path`):
            Their fields, and the sizes and times (or versions) of their files identify the Arrow file.
        write (`Callable`):
            Writes the Arrow file to a path. Called once, also if several processes load the same files.
        key (`str`, *optional*):
            Further options that the content depends on.
    """
    folder = writable_folder()
    name = _digest(readers, key)
    path, counts_path = folder / f"{name}.arrow", folder / f"{name}.json"
    with Locks(folder).hold(name, wait=True):
        if path.is_file() and counts_path.is_file():
            files = [_loaded_file(state) for state in json.loads(counts_path.read_text(encoding="utf-8"))]
        else:
            for leftover in folder.glob(f"{path.name}.*"):  # of a killed process
                leftover.unlink()
            with atomic_write(path) as partial, recorded_files() as written:
                write(partial)
                write_json([_state_of(file) for file in written], counts_path)
            files = []  # reported while they were read
    for file in files:
        file.report()
    return Dataset.from_file(str(path))


def _digest(readers: Sequence[Any], key: str) -> str:
    parts = [f"{VERSION} {key}"]
    parts += [f"{reader} {_version(reader.path)}" for reader in readers]
    return blake2b("\n".join(parts).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _version(path: Path | RemoteFile) -> str:
    if isinstance(path, RemoteFile):
        return path.version()
    state = path.stat()
    return f"{path.absolute()} {state.st_size} {state.st_mtime_ns}"


def _state_of(file: LoadedFile) -> dict[str, Any]:
    return {"name": file.name, "counts": file.counts.state_dict(), "first": file.first}


def _loaded_file(state: dict[str, Any]) -> LoadedFile:
    return LoadedFile(state["name"], SkipCounts.from_state(state["counts"]), state["first"])


def writable_folder() -> Path:
    """The folder of the Arrow files, or a temporary one if it is not writable."""
    folder = Path(datasets.config.HF_DATASETS_CACHE, "blip_hf")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return _temporary_folder(folder)


@cache
def _temporary_folder(unwritable: Path) -> Path:
    """A folder that is removed at the end of the process."""
    folder = tempfile.TemporaryDirectory(prefix="blip_hf-", ignore_cleanup_errors=True)
    _temporary_folders.append(folder)
    logger.warning(
        f"The cache {unwritable} is not writable, so each run converts its files again, to {folder.name}. Set"
        " HF_DATASETS_CACHE to a folder that is."
    )
    return Path(folder.name)


_temporary_folders: list[tempfile.TemporaryDirectory] = []

__all__ = ["cached_table", "writable_folder"]
