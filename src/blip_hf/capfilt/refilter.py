# SPDX-License-Identifier: BSD-3-Clause
"""Applies another rule to the scores of a run, without a model: only the scores and the images are read."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.readers import Shard
from ..locks import Locks
from .filters import Rule, find_cutoffs, keep_mask, with_filter_temperature
from .output_folder import refuse_taken
from .scores import RunFolder, read_scores
from .source_digests import open_unchanged
from .writers import Models, PairFormat, remove_partial_pairs, write_pairs


def refilter(
    run_dir: str | os.PathLike[str],
    rule: Rule,
    out_dir: str | os.PathLike[str],
    format: PairFormat = "parquet",
) -> dict[str, int]:
    """Writes the pairs of a run that another rule keeps.

    The rule and format of the run itself give the same bytes as the run.

    Args:
        run_dir (`str` or `Path`):
            Folder of a finished run.
        rule (`Rule`):
            The rule.
        out_dir (`str` or `Path`):
            Output folder, with one file per shard.
        format (`str`, *optional*, defaults to `"parquet"`):
            `"parquet"`, `"webdataset"` or `"json"`, see [`~blip_hf.capfilt.writers.write_pairs`].

    Returns:
        `dict[str, int]`: number of pairs kept, by source.

    Raises:
        ValueError: If `run_dir` is not a run, a shard has no scores, the source has changed since the run, `out_dir`
            holds the source or the run, or another process filters into it.
    """
    run = RunFolder(run_dir)
    if not run.settings.is_file():
        raise ValueError(f"{run.settings} does not exist. Pass the folder that `blip-hf capfilt run` wrote to.")
    settings = json.loads(run.settings.read_text(encoding="utf-8"))
    refuse_taken(out_dir, run, settings["source"])
    shards = _scored_shards(run, settings)
    locks = Locks(Path(out_dir))
    with locks.hold(".refilter", wait=False) as is_held:
        if not is_held:
            raise ValueError(
                f"Another `blip-hf capfilt refilter` writes to {out_dir}. Wait until it ends, or pass another folder."
            )
        try:
            return _write_pairs(run, settings["models"], shards, rule, out_dir, format)
        finally:
            locks.remove_files()


def write_kept(
    run: RunFolder, rule: Rule, out_dir: str | os.PathLike[str], format: PairFormat = "parquet"
) -> dict[str, int]:
    """Same as [`refilter`], into any folder. No other process may write there."""
    settings = json.loads(run.settings.read_text(encoding="utf-8"))
    return _write_pairs(run, settings["models"], _scored_shards(run, settings), rule, out_dir, format)


def _scored_shards(run: RunFolder, settings: Mapping[str, Any]) -> list[Shard]:
    """The shards of the source. Raises if the source has changed, or a shard has no scores."""
    shards = open_unchanged(run, settings)
    missing = [shard.name for shard in shards if not run.scores(shard.name).is_file()]
    if missing:
        raise ValueError(
            f"{run.root} lacks the scores of {len(missing)} shards, such as {missing[0]}. Finish the run."
        )
    return shards


def _write_pairs(
    run: RunFolder,
    models: Models,
    shards: Sequence[Shard],
    rule: Rule,
    out_dir: str | os.PathLike[str],
    format: PairFormat,
) -> dict[str, int]:
    rule = with_filter_temperature(rule, models)
    cutoffs = find_cutoffs(rule, lambda: (read_scores(run.scores(shard.name)) for shard in shards))
    totals: Counter[str] = Counter(dict.fromkeys(rule.sources, 0))
    for shard in shards:
        table = read_scores(run.scores(shard.name))
        rows = table.filter(keep_mask(table, rule, cutoffs))
        totals.update(rows["source"].to_pylist())
        path = Path(out_dir, shard.name)
        remove_partial_pairs(path, format)
        write_pairs(shard.samples(checks_images=False), rows, path, format, models=models)
    return dict(totals)


__all__ = ["refilter", "write_kept"]
