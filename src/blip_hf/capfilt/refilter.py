# SPDX-License-Identifier: BSD-3-Clause
"""Another rule over the scores of a run: no model is needed, only the scores and the source of the pictures."""

import json
import os
from collections import Counter
from pathlib import Path

from .rules import Rule, find_cutoffs, kept
from .samples import find_shards
from .scores import RunFolder, read_scores
from .writers import PairFormat, write_pairs


def refilter(
    run_dir: str | os.PathLike[str],
    rule: Rule,
    out_dir: str | os.PathLike[str],
    format: PairFormat = "parquet",
) -> dict[str, int]:
    """Writes the pairs that a rule keeps of those that a run has scored.

    The run's own rule and format give the run's own files, byte for byte.

    Args:
        run_dir (`str` or `Path`):
            Folder of a run that has scored all of its shards.
        rule (`Rule`):
            The rule.
        out_dir (`str` or `Path`):
            Where the pairs go, one file a shard.
        format (`str`, *optional*, defaults to `"parquet"`):
            See [`~blip_hf.capfilt.writers.write_pairs`].

    Returns:
        `dict[str, int]`: number of pairs kept, by source.

    Raises:
        ValueError: If there is no such run, or it has not scored all of its shards.
    """
    run = RunFolder(run_dir)
    if not run.settings.is_file():
        raise ValueError(f"{run.settings} does not exist. Pass the folder that `blip-hf capfilt run` wrote to.")
    settings = json.loads(run.settings.read_text(encoding="utf-8"))
    shards = find_shards(settings["source"], image_root=settings["image_root"], shard_size=settings["shard_size"])
    missing = [shard.name for shard in shards if not run.scores(shard.name).is_file()]
    if missing:
        raise ValueError(f"{run_dir} lacks the scores of {len(missing)} shards, such as {missing[0]}. Finish the run.")
    cutoffs = find_cutoffs(rule, lambda: (read_scores(run.scores(shard.name)) for shard in shards))
    totals: Counter[str] = Counter(dict.fromkeys(rule.sources, 0))
    for shard in shards:
        table = read_scores(run.scores(shard.name))
        rows = table.filter(kept(table, rule, cutoffs))
        totals.update(rows["source"].to_pylist())
        write_pairs(shard.samples(), rows, Path(out_dir, shard.name), format, models=settings["models"])
    return dict(totals)


__all__ = ["refilter"]
