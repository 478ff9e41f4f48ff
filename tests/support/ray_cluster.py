# SPDX-License-Identifier: BSD-3-Clause
"""A Ray cluster on this machine, whose nodes are processes: no dashboard, no network."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest

from tests.support.paths import ROOT


@contextmanager
def ray_cluster(num_nodes: int, num_cpus: int = 1) -> Iterator[Any]:
    """Yields a `ray.cluster_utils.Cluster` of nodes with that many CPUs each, and ends all its processes."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    # The nodes inherit the environment, and the actors that of the nodes.
    environment = {"PYTHONPATH": str(ROOT / "src"), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    # Notices a dead node within seconds.
    system = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
    node = {"num_cpus": num_cpus, "include_dashboard": False, "object_store_memory": 2**27}
    handler = signal.getsignal(signal.SIGTERM)
    with mock.patch.dict(os.environ, environment):
        cluster = Cluster(initialize_head=True, head_node_args={**node, "_system_config": system})
        for _ in range(num_nodes - 1):
            cluster.add_node(**node)
    signal.signal(signal.SIGTERM, handler)  # Ray's own would end the tests that follow
    try:
        yield cluster
    finally:
        cluster.shutdown()
