# SPDX-License-Identifier: BSD-3-Clause
"""Stages of a long run. Each writes a folder, and is skipped if its settings and inputs have not changed."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import file_digest, write_json


RECORD = "stage.json"

# Files of an image folder and of `Dataset.save_to_disk`
_SOURCE_FILES = ("metadata.*", "*.parquet", "*.arrow", "state.json", "dataset_dict.json")

Metrics = dict[str, Any]
Report = Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """Output folder of a stage, the fingerprint of its settings and inputs, its metrics, and its minutes.

    After an interruption, `minutes` is the time of the last run only.
    """

    folder: Path
    fingerprint: str
    metrics: Metrics = field(repr=False)
    minutes: float = 0.0


def run_stage(
    folder: Path,
    settings: Mapping[str, Any],
    inputs: Sequence[Stage],
    action: Callable[[Path], Metrics],
    report: Report,
) -> Stage:
    """Runs a stage, or reads its record if it is done with the same settings and inputs.

    The action writes to `<folder>.part`, which replaces `folder` at the end. After an interruption the action finds its
    files there and may resume, unless settings or inputs have changed.
    """
    fingerprint = _digest({"settings": settings, "inputs": [stage.fingerprint for stage in inputs]})
    record = read_record(folder)
    if record.get("fingerprint") == fingerprint:
        report(f"{folder.name}: done")
        return Stage(folder, fingerprint, record["metrics"], record["minutes"])
    work = folder.with_name(f"{folder.name}.part")
    record = read_record(work)
    is_resumed = record.get("fingerprint") == fingerprint
    if not is_resumed and work.exists():
        shutil.rmtree(work)
    if not is_resumed or "metrics" not in record:
        work.mkdir(parents=True, exist_ok=True)
        write_json({"fingerprint": fingerprint}, work / RECORD)
        report(f"{folder.name}: {'resumes' if is_resumed else 'starts'}")
        start = time.monotonic()
        record = {"fingerprint": fingerprint, "settings": settings, "metrics": action(work)}
        record["minutes"] = (time.monotonic() - start) / 60
        record["inputs"] = {stage.folder.name: stage.fingerprint for stage in inputs}
        write_json(record, work / RECORD)
    if folder.exists():
        shutil.rmtree(folder)
    work.replace(folder)
    report(f"{folder.name}: {record['minutes']:.1f} minutes")
    return Stage(folder, fingerprint, record["metrics"], record["minutes"])


def read_record(folder: Path) -> dict[str, Any]:
    """Reads the record of a stage, empty if there is none."""
    path = folder / RECORD
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "figures" in record:  # the name in version 0.1
        record["metrics"] = record.pop("figures")
    return record


def source_digests(path: str | Path) -> dict[str, str]:
    """Hashes the files of a source of pairs, without images, by name. Empty for a name on the Hub."""
    path = Path(path)
    if path.is_file():
        return {"": file_digest(path)}
    files = sorted(file for pattern in _SOURCE_FILES for file in path.rglob(pattern))
    return {file.relative_to(path).as_posix(): file_digest(file) for file in files}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


__all__ = ["RECORD", "Metrics", "Report", "Stage", "read_record", "run_stage", "source_digests"]
