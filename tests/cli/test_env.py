# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf env`: information for a bug report."""

import torch
import transformers

import blip_hf
from blip_hf.cli import main
from blip_hf.cli.env import PACKAGES, environment


def test_versions_and_hardware_are_listed(capsys):
    assert main(["env"]) == 0
    rows = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert rows["blip_hf"].strip() == blip_hf.__version__
    assert rows["torch"].strip() == torch.__version__
    assert rows["transformers"].strip() == transformers.__version__
    assert {
        *PACKAGES,
        "python",
        "platform",
        "cpu",
        "avx512_bf16",
        "cuda",
        "mps",
        "default device",
        "extras",
    } <= rows.keys()
    assert environment()["avx512_bf16"] in ("yes", "no", "unknown")
