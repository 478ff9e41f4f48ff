# SPDX-License-Identifier: BSD-3-Clause
"""CapFilt and captioning on a Ray cluster of two nodes when one dies."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from blip_hf.capfilt.engine import CapFilt
from blip_hf.capfilt.engines.ray import RayCluster, run_capfilt_on_ray
from blip_hf.capfilt.runner import run_capfilt
from blip_hf.capfilt.settings import CapFiltSettings
from blip_hf.cli import main
from tests.support.files import run_contents
from tests.support.images import noise_images
from tests.support.ray_cluster import ray_cluster


pytestmark = pytest.mark.usefixtures("one_thread")


SETTINGS = CapFiltSettings(prompt="a b", max_length=12, batch_size=2, num_workers=1)
NUM_SHARDS = 40
OPTIONS = {"shard_size": 4, "show_progress": False}
SOURCE = f"scenes:{4 * NUM_SHARDS}:0.4"


@contextmanager
def kill_a_node(cluster: Any, num_done: Callable[[], int], after: int, before: int) -> Iterator[None]:
    """Kills a node during the block when `num_done()` reaches `after`, and checks that it was below `before` then."""
    node = cluster.worker_nodes.copy().pop()
    killed_at = []

    def kill() -> None:
        while num_done() < after:
            time.sleep(0.02)
        cluster.remove_node(node, allow_graceful=False)
        killed_at.append(num_done())

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    yield
    killer.join()
    assert killed_at[0] < before


@pytest.mark.slow
def test_a_node_that_dies_changes_no_byte(captioner_folder, matcher_folder, tmp_path):
    def num_done() -> int:
        return len(list((tmp_path / "ray" / "scores").glob("*.parquet")))

    # Until the last shards, each actor has one.
    with ray_cluster(num_nodes=2) as cluster, kill_a_node(cluster, num_done, NUM_SHARDS // 4, NUM_SHARDS - 1):
        totals = run_capfilt_on_ray(
            captioner_folder,
            matcher_folder,
            SOURCE,
            tmp_path / "ray",
            settings=SETTINGS,
            device="cpu",
            cluster=RayCluster(address=cluster.address),
            **OPTIONS,
        )
    engine = CapFilt.from_pretrained(captioner_folder, matcher_folder, device="cpu", settings=SETTINGS)
    assert run_capfilt(engine, SOURCE, tmp_path / "local", **OPTIONS) == totals
    assert run_contents(tmp_path / "ray") == run_contents(tmp_path / "local")


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_a_node_that_dies_changes_no_caption(share, captioner_folder, tmp_path):
    num_images = 160
    for number, image in enumerate(noise_images(num_images)):
        image.save(tmp_path / f"{number:03d}.png")
    local, ray = tmp_path / "local.jsonl", tmp_path / "ray.jsonl"
    settings = ("--scores", "--sample", "--seed", "1", "--batch_size", "2", "--device", "cpu", "--output")
    argv = ["caption", str(captioner_folder), str(tmp_path), *settings]
    assert main([*argv, str(local)]) == 0

    def num_done() -> int:
        part = tmp_path / "ray.jsonl.part"
        return part.read_bytes().count(b"\n") if part.is_file() else 0

    with (
        ray_cluster(num_nodes=2) as cluster,
        kill_a_node(cluster, num_done, int(share * num_images), num_images - 16),
    ):
        assert main([*argv, str(ray), "--engine", "ray", "--address", cluster.address, "--shard_size", "4"]) == 0
    assert ray.read_bytes() == local.read_bytes()
