# SPDX-License-Identifier: BSD-3-Clause
"""`--address auto` finds a cluster that `ray start` started."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from blip_hf.cli import main
from tests.support.files import run_contents
from tests.support.images import noise_images
from tests.support.paths import ROOT


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def started_cluster(monkeypatch):
    """A cluster of one node that a shell command started, and whose address Ray notes in `RAY_TMPDIR`."""
    pytest.importorskip("ray")
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # short, for the paths of sockets
        monkeypatch.setenv("RAY_TMPDIR", folder)
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "RAY_USAGE_STATS_ENABLED": "0"}
        options = ("--head", "--block", "--port", "0", "--num-cpus", "1", "--include-dashboard", "false")
        ray = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *options],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 120
            while not Path(folder, "ray", "ray_current_cluster").is_file():
                assert ray.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield
        finally:
            ray.terminate()
            ray.wait()


@pytest.mark.slow
def test_address_auto_of_both_commands(started_cluster, captioner_folder, matcher_folder, tmp_path):
    on_ray = ("--engine", "ray", "--address", "auto")
    for number, image in enumerate(noise_images(5)):
        image.save(tmp_path / f"{number}.png")
    caption = ["caption", captioner_folder, tmp_path, "--device", "cpu", "--output"]
    capfilt = [
        "capfilt",
        "run",
        "--source",
        "scenes:8:0.4",
        "--shard_size",
        "4",
        "--prompt",
        "a",
        "--max_length",
        "12",
    ]
    capfilt += ["--captioner", captioner_folder, "--filter", matcher_folder, "--device", "cpu", "--output_dir"]
    for command in (caption, capfilt):
        for name, engine in (("ray", on_ray), ("local", ())):
            assert main([*map(str, command), str(tmp_path / f"{name}.out" / command[0]), *engine]) == 0
    assert run_contents(tmp_path / "ray.out") == run_contents(tmp_path / "local.out")
