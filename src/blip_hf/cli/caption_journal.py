# SPDX-License-Identifier: BSD-3-Clause
"""The journal of a `blip-hf caption` run, from which an interrupted run continues.

JSON lines: first the settings of the run, then one line for each image, appended whole. A killed process can leave half a
line at the end, which is removed when the journal is opened again.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..locks import Locks
from .errors import UsageError


Outcome = dict[str, Any]
"""`{"image": name, "captions": [{...}]}`, or `{"image": name, "skipped": kind, "error": message}`.

`"occurrence"` is the number of earlier images of this name, if there are any: images come in any order.
"""

ImageKey = tuple[str, int]
"""Name of an image, and the number of earlier images of this name."""


def keys_of(names: list[str]) -> list[ImageKey]:
    """The keys of images in order.

    Example:
        >>> keys_of(["a.jpg", "b.jpg", "a.jpg"])
        [('a.jpg', 0), ('b.jpg', 0), ('a.jpg', 1)]
    """
    counts: Counter[str] = Counter()
    keys = []
    for name in names:
        keys.append((name, counts[name]))
        counts[name] += 1
    return keys


class Journal:
    """Outcomes of the images of one run, in a file. Only the places of the lines are in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head: dict[str, Any] | None = None
        """The first line; `None` for a new journal."""
        self._places: dict[ImageKey, int] = {}
        end = self._read_lines() if path.is_file() else 0
        self._file = path.open("a+b")
        self._file.truncate(end)

    def __contains__(self, key: ImageKey) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: ImageKey) -> Outcome:
        self._file.seek(self._places[key])
        return json.loads(self._file.readline())

    def last(self) -> Outcome | None:
        """The outcome that was appended last."""
        return self[next(reversed(self._places))] if self._places else None

    def start(self, head: Mapping[str, Any]) -> None:
        """Empties the journal and writes its first line."""
        self._file.truncate(0)
        self._places.clear()
        self._append(head)

    def append(self, outcome: Outcome) -> None:
        """Adds the outcome of an image."""
        self._note(outcome, self._append(outcome))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def remove(self) -> None:
        """Closes and removes the file."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _append(self, content: Mapping[str, Any]) -> int:
        place = self._file.seek(0, os.SEEK_END)
        # Half a surrogate pair, as in a name that is not UTF-8, becomes a JSON escape.
        line = json.dumps(content, ensure_ascii=False).encode(errors="backslashreplace")
        self._file.write(line + b"\n")
        self._file.flush()
        return place

    def _note(self, outcome: Outcome, place: int) -> None:
        self._places[outcome["image"], outcome.get("occurrence", 0)] = place

    def _checked_head(self, content: Any) -> dict[str, Any]:
        if not isinstance(content, dict) or "settings" not in content:
            raise UsageError(f"{self.path} is not the journal of a blip-hf caption run. Move it away.")
        return content

    def _read_lines(self) -> int:
        """Reads the whole lines, and returns where they end."""
        end = 0
        with self.path.open("rb") as file:
            for line in file:
                content = _parse(line)
                if content is None:
                    break
                if self.head is None:
                    self.head = self._checked_head(content)
                else:
                    self._note(content, end)
                end += len(line)
        return end


def _parse(line: bytes) -> dict[str, Any] | None:
    """The object of a line, or `None` for half a line."""
    if not line.endswith(b"\n"):
        return None
    try:
        return json.loads(line)
    except ValueError:  # zeros, after a power cut
        return None


@contextmanager
def open_journal(path: Path, settings: Mapping[str, Any], *, overwrite: bool) -> Iterator[Journal]:
    """Opens the journal of a run: a new one, or that of an interrupted run with the same settings.

    `overwrite` starts again, unless the interrupted run was started with it too: then it is the same command.

    Raises:
        UsageError: If the interrupted run has other settings, or another process is writing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = Locks(path.parent)
    with lock.hold(path.name, wait=False) as is_held:
        if not is_held:
            raise UsageError(f"Another blip-hf caption is writing {path}. Wait for its end, or pass another output.")
        journal = Journal(path)
        try:
            _start_or_continue(journal, settings, overwrite=overwrite)
            yield journal
        finally:
            journal.close()
            with suppress(PermissionError):  # Windows refuses to remove a file that is open
                path.with_name(f"{path.name}.lock").unlink(missing_ok=True)


def _start_or_continue(journal: Journal, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    settings = json.loads(json.dumps(settings))  # as they are read back
    changed = [] if journal.head is None else [n for n in settings if journal.head["settings"].get(n) != settings[n]]
    if journal.head is None or (overwrite and (changed or not journal.head["overwrite"])):
        journal.start({"settings": settings, "overwrite": overwrite})
    elif changed:
        was = journal.head["settings"].get(changed[0])
        is_sidecar = settings.get("format") == "sidecar"
        keeping = f" Or remove {journal.path}: then its text files are kept like others." if is_sidecar else ""
        raise UsageError(
            f"{journal.path} holds {len(journal)} images of an interrupted run with {_option(changed[0], was)}, now"
            f" {_option(changed[0], settings[changed[0]])}. Pass the options of that run to continue, or --overwrite to"
            f" start again.{keeping}"
        )


def _option(name: str, value: Any) -> str:
    if value is None or value is False or value == "":
        return f"no --{name}"
    return f"--{name} with weights {value}" if name in ("model", "matcher") else f"--{name} {value!r}"


__all__ = ["ImageKey", "Journal", "Outcome", "keys_of", "open_journal"]
