# SPDX-License-Identifier: BSD-3-Clause
"""Stops a run of `blip-hf caption` after some images."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from blip_hf.cli.caption_journal import Journal


@contextmanager
def signal_after(num_images: int, number: signal.Signals) -> Iterator[None]:
    """Within the block, the process signals itself when a journal has noted `num_images` images more."""
    noted = 0
    append = Journal.append

    def append_and_signal(self: Journal, outcome: dict) -> None:
        nonlocal noted
        append(self, outcome)
        noted += 1
        if noted == num_images:
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", append_and_signal)
        yield


def leave_half_a_line(path: os.PathLike[str], line: bytes = b'{"image": "half') -> None:
    """Appends half a line, as a process leaves that is killed while it writes."""
    with open(path, "ab") as file:
        file.write(line)
