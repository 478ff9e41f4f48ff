# SPDX-License-Identifier: BSD-3-Clause
"""The folder of a CapFilt run on drawn scenes, with given scores."""

from dataclasses import asdict
from pathlib import Path

from blip_hf.capfilt.filters import Rule
from blip_hf.capfilt.scores import RunFolder, write_scores
from tests.support.files import write_json
from tests.support.scores import score_row, table_of


ITM_SCORES = {"web": (0.9, 0.1, 0.4, 0.7), "synthetic": (0.95, 0.5, 0.3, 0.8)}


def write_scene_run(folder: Path, source: str = "scenes:4") -> Path:
    """A run of one shard with four scenes, each with a web and a synthetic text."""
    rows = [
        score_row(f"scenes/{scene:08d}", str(scene), f"{name} <{scene}>", name, scores[scene], itc=scores[scene] - 0.5)
        for scene in range(4)
        for name, scores in ITM_SCORES.items()
    ]
    run = RunFolder(folder)
    write_scores(table_of(rows), run.scores("scenes-00000"))
    settings = {"source": source, "image_root": None, "shard_size": 4, "rule": asdict(Rule())}
    models = {role: {"name": role, "fingerprint": "0"} for role in ("captioner", "filter")}
    write_json(run.settings, settings | {"models": models})
    return folder
