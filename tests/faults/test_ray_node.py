# SPDX-License-Identifier: BSD-3-Clause
"""CapFilt on a Ray cluster of two nodes when one dies."""

import threading
import time

import pytest

from blip_hf.capfilt.engine import CapFilt
from blip_hf.capfilt.engines.ray import RayCluster, run_capfilt_on_ray
from blip_hf.capfilt.runner import run_capfilt
from blip_hf.capfilt.settings import CapFiltSettings
from tests.support.files import run_contents
from tests.support.ray_cluster import ray_cluster


pytestmark = pytest.mark.usefixtures("one_thread")


SETTINGS = CapFiltSettings(prompt="a b", max_length=12, batch_size=2, num_workers=1)
NUM_SHARDS = 40
OPTIONS = {"shard_size": 4, "show_progress": False}
SOURCE = f"scenes:{4 * NUM_SHARDS}:0.4"


@pytest.mark.slow
def test_a_node_that_dies_changes_no_byte(captioner_folder, matcher_folder, tmp_path):
    with ray_cluster(num_nodes=2) as cluster:
        node = cluster.worker_nodes.copy().pop()
        num_done = []

        def kill():
            # Until the last shards, each actor has one.
            while len(list((tmp_path / "ray" / "scores").glob("*.parquet"))) < NUM_SHARDS // 4:
                time.sleep(0.02)
            cluster.remove_node(node, allow_graceful=False)
            num_done.append(len(list((tmp_path / "ray" / "scores").glob("*.parquet"))))

        killer = threading.Thread(target=kill)
        killer.start()
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
        killer.join()
    assert num_done[0] < NUM_SHARDS - 1
    engine = CapFilt.from_pretrained(captioner_folder, matcher_folder, device="cpu", settings=SETTINGS)
    assert run_capfilt(engine, SOURCE, tmp_path / "local", **OPTIONS) == totals
    assert run_contents(tmp_path / "ray") == run_contents(tmp_path / "local")
