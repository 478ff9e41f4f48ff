# SPDX-License-Identifier: BSD-3-Clause
"""Child processes that are killed: forked, so that nothing is imported again."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch


# What changes files or waits for the disk.
WRITING_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"}


def run_forked(function: Callable[[], object]) -> int:
    """Runs a function in a child process, and returns its exit status, or `-n` if signal `n` killed it."""
    child = os.fork()
    if child == 0:
        status = 1
        torch.set_num_threads(1)  # threads of OpenMP are not forked; waiting for them would not end
        try:
            function()
            status = 0
        except SystemExit as exit_:
            status = exit_.code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def kill_at_write(folder: Path, number: int) -> None:
    """Kills this process at its n-th operation on files in a folder, from 0."""
    operations = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal operations
        if event in WRITING_EVENTS and any(str(folder) in str(argument) for argument in arguments):
            if operations == number:
                os.kill(os.getpid(), signal.SIGKILL)
            operations += 1

    sys.addaudithook(count)
