# SPDX-License-Identifier: BSD-3-Clause
"""Writers of small JSON, JSON lines and tar files, which create the parent folders and return the path; CapFilt's files."""

import json
import tarfile
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_json_lines(path: Path, records: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
    return path


def run_contents(folder: Path) -> dict[str, bytes]:
    """The files of a CapFilt run by name, without `run.json`, which contains versions."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name != "run.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
