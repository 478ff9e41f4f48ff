# SPDX-License-Identifier: BSD-3-Clause
"""Refuses output folders in which a command would overwrite its own input. Links are resolved first."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..data.readers.remote import is_remote
from ..data.readers.scenes import is_scenes
from .scores import RunFolder


def refuse_source_folder(out_dir: str | os.PathLike[str], source: str | Sequence[str]) -> None:
    """Raises `ValueError` if `out_dir` is a folder of the source, or a link to nowhere."""
    _refuse(out_dir, [path for path in _paths(source) if path.is_dir()], "the source")


def refuse_taken(out_dir: str | os.PathLike[str], run: RunFolder, source: str | Sequence[str]) -> None:
    """Raises `ValueError` if pairs in `out_dir` would lie among the files of a run or of its source."""
    sources = [path if path.is_dir() else path.parent for path in _paths(source)]
    own = [Path(run.root), run.scores_folder, run.skipped_folder, run.pairs_folder, run.locks_folder]
    _refuse(out_dir, [*sources, *own], "the source or the files of the run")


def _paths(source: str | Sequence[str]) -> list[Path]:
    sources = [source] if isinstance(source, str) else source
    return [Path(path) for path in sources if not (is_scenes(path) or is_remote(path))]


def _refuse(out_dir: str | os.PathLike[str], taken: Sequence[Path], content: str) -> None:
    path = Path(out_dir)
    if path.is_symlink() and not path.exists():
        raise ValueError(
            f"{path} is a link to {path.readlink()}, which does not exist. Create it, or remove the link."
        )
    if path.resolve() in {folder.resolve() for folder in taken}:
        raise ValueError(f"{path} holds {content}, which the output would overwrite. Pass another folder.")


__all__ = ["refuse_source_folder", "refuse_taken"]
