# SPDX-License-Identifier: BSD-3-Clause
"""Files and folders that are whole or not there: written beside, then renamed."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


_MODEL_ID = r"\w[\w.-]*/\w[\w.-]*"


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder to, which takes the place of `path` when all went well.

    Args:
        path (`str` or `Path`):
            What is to be written; the folder it lies in is made.

    Yields:
        `Path`: where to write it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_write(Path(folder, "a.txt")) as path:
        ...         _ = path.write_text("whole")
        ...     Path(folder, "a.txt").read_text()
        'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process in the name keeps two writers of one path apart.
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield beside
        beside.replace(path)
    finally:
        _remove(beside)


def remove_partial(path: str | os.PathLike[str]) -> None:
    """Removes what processes that were killed have left beside `path`. None may be at work on it.

    Args:
        path (`str` or `Path`):
            What they were to write.
    """
    path = Path(path)
    if path.parent.is_dir():
        for beside in path.parent.iterdir():
            if re.fullmatch(re.escape(path.name) + r"\.\d+\.part", beside.name):
                _remove(beside)


def _remove(beside: Path) -> None:
    if beside.is_dir():
        shutil.rmtree(beside)
    beside.unlink(missing_ok=True)


def write_json(content: Any, path: str | os.PathLike[str]) -> None:
    """Writes a JSON file that appears under its name only when it is complete.

    Args:
        content (`Any`):
            What to write.
        path (`str` or `Path`):
            The file.
    """
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(content), encoding="utf-8")


def require_checkpoint(source: str) -> None:
    """Raises on what is neither a folder nor can be a model id, before minutes are spent on asking the Hub for it.

    Args:
        source (`str`):
            A folder with a saved model, or a model id on the Hub.

    Raises:
        ValueError: If there is no such folder, and the name is no `owner/name` or starts with a folder that is here.

    Example:
        >>> require_checkpoint("Salesforce/blip-vqa-base")
        >>> require_checkpoint("nowhere")
        Traceback (most recent call last):
        ...
        ValueError: nowhere is no folder here. Pass a folder with a saved model, or a model id such as owner/name.
    """
    if Path(source).is_dir():
        return
    if not re.fullmatch(_MODEL_ID, source) or Path(source).parent.is_dir():
        raise ValueError(
            f"{source} is no folder here. Pass a folder with a saved model, or a model id such as owner/name."
        )


__all__ = ["atomic_write", "remove_partial", "require_checkpoint", "write_json"]
