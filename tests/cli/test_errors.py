# SPDX-License-Identifier: BSD-3-Clause
"""Errors that users see in one line."""

import os
import signal

import pytest
from torch.utils.data import DataLoader

from blip_hf.cli.errors import message_of


def kill_this_process(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_of_a_data_loader_is_named_with_the_remedy():
    with pytest.raises(RuntimeError) as error:
        list(DataLoader(range(2), num_workers=1, collate_fn=kill_this_process))
    message = message_of(error.value)
    assert message.startswith("DataLoader worker (pid")
    assert message.endswith("Pass --workers 0.")


def test_an_error_of_the_program_keeps_its_traceback():
    assert message_of(RuntimeError("shapes differ")) is None
