# SPDX-License-Identifier: BSD-3-Clause
"""Shares the shards of a run among processes of one machine. A process that is killed loses at most its shard.

The processes communicate through lock files only: each locks a shard, writes its files and continues with the next one.
"""

from ...data.readers.samples import Shard
from ...locks import Locks
from ..engine import CapFilt
from ..progress import Progress
from ..run import Run
from ..shard_writer import write_shard
from ..writers import Models


def write_shards(
    engine: CapFilt,
    run: Run,
    models: Models,
    shards: list[Shard],
    locks: Locks,
    progress: Progress,
    *,
    process_index: int,
    num_processes: int,
) -> None:
    """Returns when all shards are done. Each process starts with its own part, then does what is left of the others."""
    own = shards[process_index::num_processes]
    names = {shard.name for shard in own}
    order = [*own, *(shard for shard in shards if shard.name not in names)]
    # The second round waits for shards that other processes hold, and does those of killed ones.
    for wait in (False, True):
        for shard in order:
            if not run.is_done(shard):
                with locks.hold(f"shard-{shard.name}", wait=wait) as is_held:
                    if is_held and not run.is_done(shard):
                        write_shard(engine, run, models, shard, progress.add)
                        progress.finish_shard()


__all__ = ["write_shards"]
