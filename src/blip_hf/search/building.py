# SPDX-License-Identifier: BSD-3-Clause
"""Creates an index or opens an existing one for an update, by one process at a time, and only with its own model."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files import remove_partial
from ..locks import Locks
from .engines import LocalEngine, RayEngine
from .neighbors import ivf_path, refresh_ivf
from .sources import SourceOptions
from .store import DATABASE_NAME, Store
from .updating import Advance, Report, Update, UpdateCounts


_FORMAT = 1
_LOCK_NAME = ".index"
# What changes the vectors.
_IDENTITY = {"dtype": "data type", "weights": "weights", "processor": "processor settings"}


def update_index(
    folder: str | os.PathLike[str],
    engine: LocalEngine | RayEngine,
    sources: Sequence[str],
    *,
    options: SourceOptions | None = None,
    keep_states: bool = False,
    overwrite: bool = False,
    checksum: bool = False,
    report: Report = lambda message: None,
    advance: Advance = lambda number: None,
) -> UpdateCounts:
    """Builds an index of the images of sources, or brings it up to date. A run that was killed continues.

    Args:
        folder (`str` or `os.PathLike`):
            Folder of the index.
        engine (`LocalEngine` or `RayEngine`):
            The model.
        sources (sequence of `str`):
            Images, folders, lists, tars, Parquet files or data sets.
        options (`SourceOptions`, *optional*):
            How they are read.
        keep_states (`bool`, *optional*, defaults to `False`):
            Whether a new index keeps the image states, for faster re-ranking.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to replace an index that the folder has.
        checksum (`bool`, *optional*, defaults to `False`):
            Whether to compare the bytes of image files with the size and the time of the last run too.
        report, advance (`Callable`, *optional*):
            Called with the message of each skipped image, and with the number of images that are done.

    Raises:
        ValueError: If the folder has other files or the index of another model, or another process is writing to it.
    """
    with open_for_update(folder, engine.identity, keep_states=keep_states, overwrite=overwrite) as store:
        update = Update(store, engine, checksum=checksum, report=report, advance=advance)
        counts = update.run(sources, options or SourceOptions())
        refresh_ivf(store)
    return counts


@contextmanager
def open_for_update(
    folder: str | os.PathLike[str], identity: Any, *, keep_states: bool, overwrite: bool
) -> Iterator[Store]:
    """The store of an index, which no other process can write within the block. `identity` gives that of the model."""
    folder = Path(folder)
    is_new = not (folder / DATABASE_NAME).is_file()
    # Hidden files are those of locks, and a partial database is of a process that was killed.
    is_ours = (".", f"{DATABASE_NAME}.")
    if is_new and folder.is_dir() and any(not entry.name.startswith(is_ours) for entry in folder.iterdir()):
        raise ValueError(f"{folder} has files and is not an index. Pass another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    with Locks(folder).hold(_LOCK_NAME, wait=False) as is_held:
        if not is_held:
            raise ValueError(f"Another process is writing to {folder}. Wait for its end, or pass another folder.")
        own = identity()
        for path in (folder / DATABASE_NAME, ivf_path(folder)):
            remove_partial(path)  # of a process that was killed here
        if overwrite:
            _remove_index(folder)
        store = _open_or_create(folder, own, keep_states=keep_states)
        try:
            yield store
        finally:
            store.close()


def _open_or_create(folder: Path, identity: Mapping[str, Any], *, keep_states: bool) -> Store:
    if not (folder / DATABASE_NAME).is_file():
        states = identity["states"] if keep_states else None
        return Store.create(folder, {**identity, "states": states, "format": _FORMAT})
    store = Store(folder)
    check_model(store, identity)
    if keep_states and store.states_file is None:
        raise ValueError(f"{folder} was built without --keep_states. Leave it out, or build again with --overwrite.")
    return store


def check_model(store: Store, identity: Mapping[str, Any]) -> None:
    """Raises `ValueError` if a model is not that of the index."""
    settings = store.settings
    if settings["format"] != _FORMAT:
        raise ValueError(
            f"{store.folder} has the format {settings['format']}, expected {_FORMAT}. Build it again with --overwrite."
        )
    for name, words in _IDENTITY.items():
        if settings[name] != identity[name]:
            raise ValueError(
                f"{store.folder} is an index of the model {settings['model']} ({words} {settings[name]}), and"
                f" {identity['model']} has the {words} {identity[name]}. Vectors of different models cannot be compared:"
                " pass the model of the index, or build another index."
            )


def _remove_index(folder: Path) -> None:
    """Removes the files of an index, the one that makes the folder an index last."""
    names = (ivf_path(folder).name, "vectors.f32", "states.f16", f"{DATABASE_NAME}-journal", DATABASE_NAME)
    for name in names:
        (folder / name).unlink(missing_ok=True)


__all__ = ["check_model", "open_for_update", "update_index"]
