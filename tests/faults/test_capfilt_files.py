# SPDX-License-Identifier: BSD-3-Clause
"""Files of a CapFilt run that a loss of power or a full disk damages."""

import errno
import os
import re

import pyarrow.parquet as pq
import pytest

from blip_hf.capfilt.engine import CapFilt, CapFiltSettings
from blip_hf.capfilt.runner import run_capfilt
from blip_hf.files import DiskFullError, atomic_write
from tests.support.tiny_models import tiny_capfilt


@pytest.fixture(scope="module")
def engine():
    settings = CapFiltSettings(prompt="a b", max_length=12, batch_size=4, num_workers=0)
    return CapFilt(*tiny_capfilt(), settings)


def run(engine, folder):
    return run_capfilt(engine, "scenes:8:0.4", folder, shard_size=4, show_progress=False)


@pytest.mark.parametrize("size", [0, 4, 500])
def test_a_truncated_score_file_is_named_and_its_shard_done_again(size, engine, tmp_path, caplog):
    totals = run(engine, tmp_path)
    first, second = sorted((tmp_path / "scores").iterdir())
    whole = second.read_bytes()
    os.truncate(second, size)
    (tmp_path / "summary.json").unlink()
    assert run(engine, tmp_path) == totals
    assert second.read_bytes() == whole
    assert f"{second} is damaged and its shard is done again" in caplog.text
    assert str(first) not in caplog.text


def test_a_truncated_run_json_is_named(engine, tmp_path):
    run(engine, tmp_path)
    os.truncate(tmp_path / "run.json", 20)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'run.json'} is damaged")):
        run(engine, tmp_path)


def test_a_full_disk_is_named_with_path_and_bytes(engine, tmp_path, monkeypatch):
    def full(table, path, **options):
        path.write_bytes(b"x" * 1234)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(
        DiskFullError, match=r"scores/.*parquet: it needs more than 1,234 bytes, and [\d,]+ bytes are free"
    ):
        run(engine, tmp_path)
    assert not list((tmp_path / "scores").iterdir())
    monkeypatch.undo()
    assert run(engine, tmp_path)["num_images"] == 8


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names open files by /proc")
def test_contents_are_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr("pathlib.os.replace", lambda old, new: (events.append("rename"), replace(old, new)))
    with atomic_write(tmp_path / "folder") as beside:
        beside.mkdir()
        (beside / "a.txt").write_text("a")
    assert events == [str(beside / "a.txt"), str(beside), "rename", str(tmp_path)]
