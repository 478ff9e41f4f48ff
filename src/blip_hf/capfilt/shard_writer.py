# SPDX-License-Identifier: BSD-3-Clause
"""Captions, scores and filters a shard, and writes its files. The scores are written last and mark it as done."""

from collections.abc import Callable
from dataclasses import asdict

import pyarrow as pa

from ..data.readers.samples import Shard
from ..files import remove_partial, write_json
from .engine import CapFilt, join_tables
from .filters import find_cutoffs, keep_mask, with_filter_temperature
from .progress import Counts
from .run import Run
from .scores import write_scores
from .writers import Models, remove_partial_pairs, write_pairs


def write_shard(engine: CapFilt, run: Run, models: Models, shard: Shard, report: Callable[[Counts], None]) -> None:
    """Writes the files of a shard that no other process works on, and reports the counts of each batch."""
    scores, skipped, pairs = (path(shard.name) for path in (run.folder.scores, run.folder.skipped, run.folder.pairs))
    for path in (scores, skipped):
        remove_partial(path)
    remove_partial_pairs(pairs, run.format)
    rule = with_filter_temperature(run.rule, models)
    # With `keep_share` the pairs are written at the end, when all scores are known.
    cutoffs = None if rule.keep_share is not None else find_cutoffs(rule, list)
    batches = []
    for batch in engine.score_batches(shard.samples()):
        batches.append(batch)
        is_kept = None if cutoffs is None else keep_mask(batch.table, rule, cutoffs).tolist()
        report(Counts.of_batch(batch.table, batch.num_images, is_kept))
    table = join_tables([batch.table for batch in batches])
    write_json([asdict(item) for batch in batches for item in batch.skipped], skipped)
    if cutoffs is not None:
        rows = table.filter(pa.array(keep_mask(table, rule, cutoffs)))
        write_pairs(shard.samples(checks_images=False), rows, pairs, run.format, models=models)
    write_scores(table, scores)


__all__ = ["write_shard"]
