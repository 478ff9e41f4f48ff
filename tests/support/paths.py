# SPDX-License-Identifier: BSD-3-Clause
"""Folders that tests read: those of the repository, and the photos and reference tensors beside it."""

import os
from pathlib import Path


ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SHARED = ROOT.parent / "shared"
GOLDENS = Path(os.environ.get("BLIP_HF_GOLDENS", SHARED / "reference" / "goldens"))
DATA = Path(os.environ.get("BLIP_HF_DATA", SHARED / "data"))
