# SPDX-License-Identifier: BSD-3-Clause
"""The checkpoint folders of a run: which are whole, which one is the newest, and how a new one appears.

A checkpoint is written in `.saving/` of the run and renamed once all of its files are on the disk. Its last file,
`checkpoint_files.json`, lists the others with their sizes and checksums. Checkpoints of other trainers have no such list; for
them the files that `transformers.Trainer` writes are looked at.
"""

import json
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from transformers.utils import logging

from ..files import flush_to_disk, write_json


logger = logging.get_logger(__name__)

# Folder of a run in which a checkpoint is written before it is renamed.
SAVING_FOLDER = ".saving"
FILE_LIST_NAME = "checkpoint_files.json"
STATE_NAME = "trainer_state.json"
OPTIMIZER_NAME = "optimizer.pt"
_CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
_MODEL_SUFFIXES = (".safetensors", ".bin")


class DamagedCheckpointError(ValueError):
    """A training checkpoint that a run cannot resume from."""


def find_checkpoints(run_dir: str | os.PathLike[str]) -> list[Path]:
    """Returns the checkpoint folders of a run, whole or not, by step."""
    run_dir = Path(run_dir)
    entries = run_dir.iterdir() if run_dir.is_dir() else []
    steps = {
        path: int(match[1]) for path in entries if (match := _CHECKPOINT_NAME.fullmatch(path.name)) and path.is_dir()
    }
    return sorted(steps, key=lambda path: steps[path])


def newest_whole(run_dir: str | os.PathLike[str]) -> Path | None:
    """Returns the newest checkpoint that a run can resume from, or `None`; a warning names each newer one that it skips."""
    for checkpoint in reversed(find_checkpoints(run_dir)):
        problem = find_problem(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning(f"Skipped {checkpoint}: {problem}.")
    return None


def require_whole(checkpoint: str | os.PathLike[str]) -> Path:
    """Returns the path of a checkpoint if a run can resume from it.

    Raises:
        DamagedCheckpointError: If it does not exist, or a file is missing or damaged.
    """
    checkpoint = Path(checkpoint)
    problem = find_problem(checkpoint) if checkpoint.is_dir() else "the folder does not exist"
    if problem is None:
        return checkpoint
    others = [other for other in find_checkpoints(checkpoint.parent) if find_problem(other) is None]
    remedy = f"Resume from {others[-1]}" if others else "No other checkpoint of the run is whole: start a new run"
    raise DamagedCheckpointError(
        f"Cannot resume from {checkpoint}: {problem}. {remedy}, or pass `True` for the newest whole checkpoint of the"
        " output folder."
    )


def find_problem(checkpoint: Path) -> str | None:
    """Returns why a run cannot resume from a checkpoint: the first file that is missing or damaged, or `None`."""
    listed = checkpoint / FILE_LIST_NAME
    files = {}
    if listed.is_file():
        try:
            files = json.loads(listed.read_text(encoding="utf-8"))["files"]
        except (ValueError, KeyError, TypeError):
            return f"{FILE_LIST_NAME} is damaged"
    if not (checkpoint / STATE_NAME).is_file():
        return f"it has no {STATE_NAME}, so saving it was interrupted"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} is damaged: it has {path.stat().st_size:,} bytes of {expected['size']:,}"
        if _checksum(path) != expected["crc32"]:
            return f"{name} is damaged: its checksum is another one than when it was saved"
    for path in checkpoint.iterdir():
        if path.is_file() and not _has_valid_ends(path):
            return f"{path.name} is damaged"
    return _missing_part(checkpoint)


def is_from_deepspeed(checkpoint: Path) -> bool:
    """Returns whether DeepSpeed saved a checkpoint."""
    return any(path.is_dir() for path in checkpoint.glob("global_step*"))


def _missing_part(checkpoint: Path) -> str | None:
    """Returns which state is missing; FSDP and DeepSpeed have folders for model and optimizer."""
    names = {path.name for path in checkpoint.iterdir()}
    if any(name.startswith(("optimizer", "global_step")) and (checkpoint / name).is_dir() for name in names):
        return None
    if not any(name.endswith(_MODEL_SUFFIXES) and name.startswith(("model", "adapter", "pytorch")) for name in names):
        return "it has no weights of the model"
    if not any(name.startswith("optimizer") for name in names):
        return f"it has no {OPTIMIZER_NAME} (pass the folder as the model of a new run to start from its weights)"
    return None if "scheduler.pt" in names else "it has no scheduler.pt"


def _has_valid_ends(path: Path) -> bool:
    """Whether a file is as long as it says itself, and JSON is JSON. Reads no tensor."""
    if path.suffix == ".safetensors":
        return _is_complete_safetensors(path)
    if path.suffix in (".pt", ".pth"):
        return zipfile.is_zipfile(path)
    if path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return False
    return True


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            value = zlib.crc32(block, value)
    return value


def _is_complete_safetensors(path: Path) -> bool:
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if not 2 <= header_size <= size - 8:
            return False
        try:
            header = json.loads(file.read(header_size))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return size == 8 + header_size + max(ends, default=0)


# Writing and removing


def prepare_saving(run_dir: str | os.PathLike[str]) -> None:
    """Removes what an interrupted process left in the folder that a checkpoint is written in."""
    shutil.rmtree(Path(run_dir, SAVING_FOLDER), ignore_errors=True)


def publish(beside: Path, checkpoint: Path) -> None:
    """Lists the files of a checkpoint, waits until they are on the disk, and renames it from `beside`.

    Does nothing if another process on a shared disk has done it.
    """
    if not beside.is_dir():
        return
    files = {
        path.relative_to(beside).as_posix(): {"size": path.stat().st_size, "crc32": _checksum(path)}
        for path in _files(beside)
    }
    write_json({"files": files}, beside / FILE_LIST_NAME)
    flush_to_disk(beside)
    if checkpoint.exists():  # of the same step
        replaced = beside.with_name(f"replaced-{checkpoint.name}")
        checkpoint.replace(replaced)
    beside.replace(checkpoint)
    flush_to_disk(checkpoint.parent, contents=False)
    shutil.rmtree(beside.parent)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def remove_checkpoints(run_dir: str | os.PathLike[str], *, keep_whole: bool = False) -> list[Path]:
    """Removes the checkpoints of a run, with `keep_whole` only halves and damaged ones, and returns their paths."""
    removed = [path for path in find_checkpoints(run_dir) if not (keep_whole and find_problem(path) is None)]
    for path in removed:
        # First, so that the rest of an interrupted removal is not taken for a checkpoint.
        (path / STATE_NAME).unlink(missing_ok=True)
        shutil.rmtree(path)
    prepare_saving(run_dir)
    return removed


__all__ = [
    "FILE_LIST_NAME",
    "SAVING_FOLDER",
    "STATE_NAME",
    "DamagedCheckpointError",
    "find_checkpoints",
    "find_problem",
    "is_from_deepspeed",
    "newest_whole",
    "prepare_saving",
    "publish",
    "remove_checkpoints",
    "require_whole",
]
