# SPDX-License-Identifier: BSD-3-Clause
"""Applies another rule to the scores of a run, without a model: only the scores and the images are read."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..data.readers import find_shards
from .filters import Rule, find_cutoffs, keep_mask
from .scores import RunFolder, read_scores
from .writers import PairFormat, remove_partial_pairs, write_pairs


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
        ValueError: If `run_dir` is not a run, a shard has no scores, or `out_dir` holds the source or files of the run,
            which the pairs would overwrite.
    """
    run = RunFolder(run_dir)
    if not run.settings.is_file():
        raise ValueError(f"{run.settings} does not exist. Pass the folder that `blip-hf capfilt run` wrote to.")
    _refuse_taken(run, json.loads(run.settings.read_text(encoding="utf-8"))["source"], out_dir)
    return write_kept(run, rule, out_dir, format)


def write_kept(
    run: RunFolder, rule: Rule, out_dir: str | os.PathLike[str], format: PairFormat = "parquet"
) -> dict[str, int]:
    """Same as [`refilter`], into any folder. No other process may write there."""
    settings = json.loads(run.settings.read_text(encoding="utf-8"))
    shards = find_shards(
        settings["source"],
        image_root=settings["image_root"],
        allow_outside=settings.get("allow_outside", True),  # runs of version 0.1 opened any image
        shard_size=settings["shard_size"],
    )
    missing = [shard.name for shard in shards if not run.scores(shard.name).is_file()]
    if missing:
        raise ValueError(
            f"{run.root} lacks the scores of {len(missing)} shards, such as {missing[0]}. Finish the run."
        )
    cutoffs = find_cutoffs(rule, lambda: (read_scores(run.scores(shard.name)) for shard in shards))
    totals: Counter[str] = Counter(dict.fromkeys(rule.sources, 0))
    for shard in shards:
        table = read_scores(run.scores(shard.name))
        rows = table.filter(keep_mask(table, rule, cutoffs))
        totals.update(rows["source"].to_pylist())
        path = Path(out_dir, shard.name)
        remove_partial_pairs(path, format)
        write_pairs(shard.samples(checks_images=False), rows, path, format, models=settings["models"])
    return dict(totals)


def _refuse_taken(run: RunFolder, source: str | Sequence[str], out_dir: str | os.PathLike[str]) -> None:
    sources = [source] if isinstance(source, str) else source
    paths = [Path(path) for path in sources if not path.startswith("scenes:")]
    taken = [path if path.is_dir() else path.parent for path in paths]
    taken += [run.scores_folder, run.skipped_folder, run.pairs_folder]
    if Path(out_dir).resolve() in {folder.resolve() for folder in taken}:
        raise ValueError(
            f"{out_dir} holds the source or the files of the run, which the pairs would overwrite. Pass another folder."
        )


__all__ = ["refilter", "write_kept"]
