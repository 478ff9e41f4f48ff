# SPDX-License-Identifier: BSD-3-Clause
"""The error of a failed collective operation names the processes that did not report it."""

import pytest
from torch import distributed

from blip_hf.training import lost_processes
from blip_hf.training.lost_processes import LostProcessError, naming_lost_processes


TIMEOUT = RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 60000ms for recv operation")


@pytest.fixture
def store(monkeypatch):
    """The launcher's store; this is the first of three processes."""
    store = distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    monkeypatch.setattr(lost_processes, "world_size", lambda: 3)
    monkeypatch.setattr(lost_processes, "_WAIT_SECONDS", 0.2)
    return store


def fail(error):
    with naming_lost_processes(60):
        raise error


def test_processes_without_report_are_named(store):
    store.set("blip_hf/alive/1/1", "1")  # of the attempt before
    store.set("blip_hf/alive/2/2", "1")
    message = r"Lost process 1 of 3, seen by process 0: .* for 60 seconds \(`--ddp_timeout`\)"
    with pytest.raises(LostProcessError, match=message) as raised:
        fail(TIMEOUT)
    assert raised.value.__cause__ is TIMEOUT
    assert store.check(["blip_hf/alive/2/0"])


def test_the_error_stays_if_all_processes_report_it(store):
    for number in (1, 2):
        store.set(f"blip_hf/alive/2/{number}", "1")
    with pytest.raises(RuntimeError, match="Timed out"):
        fail(TIMEOUT)


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), ValueError("gloo")])
def test_other_errors_stay(store, error):
    with pytest.raises(type(error)) as raised:
        fail(error)
    assert raised.value is error
    assert not store.check(["blip_hf/alive/2/0"])


def test_one_process_and_a_lost_store_keep_the_error(store, monkeypatch):
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(RuntimeError, match="Timed out"):
        fail(TIMEOUT)
    monkeypatch.setattr(lost_processes, "world_size", lambda: 1)
    with pytest.raises(RuntimeError, match="Timed out"):
        fail(TIMEOUT)
