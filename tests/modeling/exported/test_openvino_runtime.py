# SPDX-License-Identifier: BSD-3-Clause
"""The process of an export survives it."""

import subprocess
import sys


# In the order in which they were made: a runtime for each graph would leave the stack of the freed one in use.
CODE = """
import gc, signal, sys
from pathlib import Path
from blip_hf.modeling.exported.openvino_runtime import OpenVinoGraph

graphs = [OpenVinoGraph("vision_model", Path(sys.argv[1]), "fp32") for _ in range(2)]
while graphs:
    graphs.pop(0)
    gc.collect()
signal.signal(signal.SIGCHLD, lambda number, frame: sys.stdout.write("handled"))
signal.raise_signal(signal.SIGCHLD)
"""


def test_signals_arrive_after_graphs_are_freed(exports):
    graph = next(exports.path("captioner", "openvino").glob("*.xml")).with_suffix("")
    done = subprocess.run([sys.executable, "-c", CODE, str(graph)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled"), done.stderr
