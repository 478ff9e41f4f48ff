# SPDX-License-Identifier: BSD-3-Clause
"""CapFilt on Ray: its options, and the same bytes as the local engine."""

import json
import os
import re
import signal
import sys

import pytest

from blip_hf.capfilt.engine import CapFilt
from blip_hf.capfilt.engines.ray import RayCluster, ShardWorker
from blip_hf.capfilt.progress import Progress
from blip_hf.capfilt.run import Run
from blip_hf.capfilt.runner import run_capfilt
from blip_hf.capfilt.settings import CapFiltSettings
from blip_hf.cli import main
from blip_hf.locks import Locks
from tests.support.files import run_contents


pytestmark = pytest.mark.usefixtures("one_thread")


SOURCE = "scenes:24:0.4"
SETTINGS = CapFiltSettings(prompt="a b", max_length=12, batch_size=2, num_workers=1)
OPTIONS = {"shard_size": 4, "show_progress": False}


def flags(captioner, matcher, out_dir, *more):
    models = ("--captioner", captioner, "--filter", matcher)
    settings = ("--prompt", "a b", "--max_length", "12", "--batch_size", "2", "--device", "cpu")
    options = ("capfilt", "run", "--source", SOURCE, "--shard_size", "4", *models, *settings, "--output_dir", out_dir)
    return [str(option) for option in (*options, *more)]


def test_ray_writes_the_bytes_of_the_local_engine(cluster, captioner_folder, matcher_folder, tmp_path, capsys):
    on_ray = ("--engine", "ray", "--address", cluster.address, "--num_actors", "1")
    assert main(flags(captioner_folder, matcher_folder, tmp_path / "ray", *on_ray)) == 0
    shown = capsys.readouterr()
    assert "24/24 [" in shown.err.split("\r")[-1]
    # tqdm shows seconds per image for less than one image per second.
    assert re.search(r"( images/s|s/ images), kept web ", shown.err.split("\r")[-1])
    engine = CapFilt.from_pretrained(captioner_folder, matcher_folder, device="cpu", settings=SETTINGS)
    totals = run_capfilt(engine, SOURCE, tmp_path / "local", **OPTIONS)
    assert json.loads(shown.out.splitlines()[-1]) == totals
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # Ray's own would end a later training
    written = run_contents(tmp_path / "ray")
    assert {name: written.pop(name) is not None for name in ("report.html", "report.json")}
    assert written == run_contents(tmp_path / "local")


@pytest.mark.slow
def test_a_run_stopped_by_sigterm_resumes(cluster, captioner_folder, matcher_folder, tmp_path, capsys, monkeypatch):
    def stop(self):
        os.kill(os.getpid(), signal.SIGTERM)

    command = flags(
        captioner_folder, matcher_folder, tmp_path / "ray", "--engine", "ray", "--address", cluster.address
    )
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "finish_shard", stop)
        assert main(command) == 143
    assert capsys.readouterr().err.splitlines()[-1] == "blip-hf capfilt: interrupted"
    assert main(command) == 0
    engine = CapFilt.from_pretrained(captioner_folder, matcher_folder, device="cpu", settings=SETTINGS)
    run_capfilt(engine, SOURCE, tmp_path / "local", **OPTIONS)
    assert run_contents(tmp_path / "ray").items() >= run_contents(tmp_path / "local").items()


@pytest.mark.slow
def test_error_of_an_actor_is_one_line(cluster, captioner_folder, matcher_folder, tmp_path, capsys):
    command = flags(captioner_folder, "nowhere", tmp_path, "--engine", "ray", "--address", cluster.address)
    assert main(command) == 2
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("blip-hf capfilt: error: nowhere does not exist. Pass a")
    )


def test_a_missing_extra_is_named(captioner_folder, matcher_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(flags(captioner_folder, matcher_folder, tmp_path, "--engine", "ray")) == 2
    assert "needs Ray, which is not installed: pip install 'blip_hf[ray]'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["run", "shard-scenes-00001"])
def test_two_engines_do_not_write_to_one_folder(name, captioner_folder, matcher_folder, tmp_path, capsys):
    with Locks(tmp_path / "locks").hold(name, wait=True):
        assert main(flags(captioner_folder, matcher_folder, tmp_path, "--engine", "ray")) == 2
    assert f"Another process writes to {tmp_path}. Wait until it ends, or" in capsys.readouterr().err


def test_options_of_ray_need_its_engine(captioner_folder, matcher_folder, tmp_path, capsys, monkeypatch):
    assert main(flags(captioner_folder, matcher_folder, tmp_path, "--num_gpus", "0")) == 2
    assert "--num_gpus is an option of Ray. Add --engine ray, or remove it." in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(flags(captioner_folder, matcher_folder, tmp_path, "--engine", "ray")) == 2
    assert "Run the command once, without torchrun or accelerate." in capsys.readouterr().err


def test_a_worker_refuses_other_weights_and_keeps_finished_shards(captioner_folder, matcher_folder, tmp_path):
    run = Run.create(tmp_path, SOURCE, None, False, 4, None, "parquet")
    worker = ShardWorker(
        run, str(captioner_folder), str(matcher_folder), device="cpu", dtype="float32", settings=SETTINGS
    )
    identities, settings = worker.identify()
    run.start(identities, settings)
    renamed = {role: {**identity, "name": "elsewhere"} for role, identity in identities.items()}
    assert sum(counts.num_images for counts in worker.write_shard("scenes-00001", renamed)) == 4
    before = run_contents(tmp_path)
    assert worker.write_shard("scenes-00001", renamed) == []
    assert run_contents(tmp_path) == before
    other = {role: {**identity, "fingerprint": "0" * 16} for role, identity in identities.items()}
    with pytest.raises(ValueError, match=r"holds other weights on the node .* than where the run started"):
        worker.write_shard("scenes-00002", other)


@pytest.mark.parametrize(
    ("options", "resources", "device", "expected"),
    [
        ({}, {"CPU": 16.0, "GPU": 4.0}, None, (4, 1)),
        ({}, {"CPU": 16.0, "GPU": 4.0}, "cpu", (16, 0)),
        ({"num_cpus": 8}, {"CPU": 16.0, "GPU": 4.0}, None, (2, 1)),
        ({"num_gpus": 0.5}, {"CPU": 16.0, "GPU": 4.0}, None, (8, 0.5)),
        ({"num_actors": 64}, {"CPU": 16.0}, None, (64, 0)),
        ({}, {}, None, (1, 0)),  # before a cluster has grown
    ],
)
def test_number_of_actors_follows_the_resources(options, resources, device, expected):
    assert RayCluster(**options).size(resources, device) == expected
