# SPDX-License-Identifier: BSD-3-Clause
"""A stage of a long run: a folder that is whole or not there, skipped when nothing that it depends on has changed."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import write_json


RECORD = "stage.json"

# Of an image folder, and of what `datasets` saves.
_SOURCE_FILES = ("metadata.*", "*.parquet", "*.arrow", "state.json", "dataset_dict.json")

Figures = dict[str, Any]
Report = Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """The output of a stage.

    Args:
        folder (`Path`):
            Where it lies, whole.
        fingerprint (`str`):
            Of its settings and of all that it was made from.
        figures (`dict`):
            What it measured.
        minutes (`float`):
            What its last piece took: all of it, or what was left after an interruption.
    """

    folder: Path
    fingerprint: str
    figures: Figures = field(repr=False)
    minutes: float = 0.0


def run_stage(
    folder: Path,
    settings: Mapping[str, Any],
    inputs: Sequence[Stage],
    action: Callable[[Path], Figures],
    report: Report,
) -> Stage:
    """Runs a stage, or reads its record where its output is there and of the same settings and inputs.

    The work is done in `<folder>.part`, which takes the place of `folder` at the end. After an interruption it is still
    there, and the action may go on from what it finds; it is emptied first where settings or inputs are others by then.

    Args:
        folder (`Path`):
            Where its output goes.
        settings (`Mapping`):
            All that decides on the output beside the inputs; JSON can hold it.
        inputs (`Sequence[Stage]`):
            The stages whose output it reads.
        action (`Callable[[Path], dict]`):
            Writes the output into a folder that is there, and returns figures.
        report (`Callable[[str], None]`):
            Told of each stage, skipped or run.

    Returns:
        `Stage`: the output.
    """
    fingerprint = _digest({"settings": settings, "inputs": [stage.fingerprint for stage in inputs]})
    record = read_record(folder)
    if record.get("fingerprint") == fingerprint:
        report(f"{folder.name}: is there")
        return Stage(folder, fingerprint, record["figures"], record["minutes"])
    work = folder.with_name(f"{folder.name}.part")
    record = read_record(work)
    is_resumed = record.get("fingerprint") == fingerprint
    if not is_resumed and work.exists():
        shutil.rmtree(work)
    if not is_resumed or "figures" not in record:
        work.mkdir(parents=True, exist_ok=True)
        write_json({"fingerprint": fingerprint}, work / RECORD)
        report(f"{folder.name}: {'goes on' if is_resumed else 'starts'}")
        start = time.monotonic()
        record = {"fingerprint": fingerprint, "settings": settings, "figures": action(work)}
        record["minutes"] = (time.monotonic() - start) / 60
        record["inputs"] = {stage.folder.name: stage.fingerprint for stage in inputs}
        write_json(record, work / RECORD)
    if folder.exists():
        shutil.rmtree(folder)
    work.replace(folder)
    report(f"{folder.name}: {record['minutes']:.1f} minutes")
    return Stage(folder, fingerprint, record["figures"], record["minutes"])


def read_record(folder: Path) -> dict[str, Any]:
    """What a stage says of itself; nothing where there is none.

    Args:
        folder (`Path`):
            Its folder.

    Returns:
        `dict`: with `fingerprint`, and where it is whole `figures`, `minutes`, `settings` and `inputs`.
    """
    path = folder / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def source_digests(path: str | Path) -> dict[str, str]:
    """Digests of the content of a source of pairs, to see whether it was changed.

    Args:
        path (`str` or `Path`):
            A file, or a folder, of which images do not count.

    Returns:
        `dict[str, str]`: by name within the folder, of the file alone by `""`. Empty where nothing is there, as of a name
        on the Hub.
    """
    path = Path(path)
    if path.is_file():
        return {"": _file_digest(path)}
    files = sorted(file for pattern in _SOURCE_FILES for file in path.rglob(pattern))
    return {file.relative_to(path).as_posix(): _file_digest(file) for file in files}


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


__all__ = ["RECORD", "Figures", "Report", "Stage", "read_record", "run_stage", "source_digests"]
