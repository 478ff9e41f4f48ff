# SPDX-License-Identifier: BSD-3-Clause
"""Locks between processes."""

import multiprocessing
import time

from blip_hf.locks import Locks


def hold_lock(folder, held):
    with Locks(folder).hold("a", wait=False):
        held.set()
        time.sleep(60)


def test_a_lock_excludes_other_processes_until_its_process_dies(tmp_path):
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold_lock, args=(tmp_path, held))
    process.start()
    held.wait()
    locks = Locks(tmp_path)
    with locks.hold("a", wait=False) as is_held:
        assert not is_held
    with locks.hold("b", wait=False) as is_held:
        assert is_held
    process.kill()
    with locks.hold("a", wait=True) as is_held:
        assert is_held
    process.join()


def test_lock_files_can_be_removed_while_a_lock_is_held(tmp_path):
    locks = Locks(tmp_path / "locks")
    with locks.hold("a", wait=True):
        locks.remove_files()
    assert not list((tmp_path / "locks").iterdir())
