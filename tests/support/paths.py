# SPDX-License-Identifier: BSD-3-Clause
"""Folders that tests read: the repository, photos and reference tensors."""

import os
from pathlib import Path


ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SHARED = ROOT.parent / "shared"
GOLDENS = Path(os.environ.get("BLIP_HF_GOLDENS", SHARED / "reference" / "goldens"))
DATA = Path(os.environ.get("BLIP_HF_DATA", SHARED / "data"))
