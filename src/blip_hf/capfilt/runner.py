# SPDX-License-Identifier: BSD-3-Clause
"""Runs CapFilt over all shards of a source, in one process or several, which may be killed and started again.

A process locks a shard, captions and scores it, and writes its files; the scores are written last and mark the shard as
done. A shard without scores is done again, with the same bytes.
"""

from collections.abc import Sequence

from ..data.readers.records import PathLike
from ..locks import Locks
from .engine import CapFilt
from .engines import local
from .filters import Rule
from .progress import Progress
from .run import Run, Totals
from .writers import PairFormat


def run_capfilt(
    engine: CapFilt,
    source: PathLike | Sequence[PathLike],
    out_dir: PathLike,
    *,
    image_root: PathLike | None = None,
    allow_outside: bool = False,
    shard_size: int = 1000,
    rule: Rule | None = None,
    format: PairFormat = "parquet",
    process_index: int = 0,
    num_processes: int = 1,
    show_progress: bool = True,
) -> Totals:
    """Captions, scores and filters a source, or resumes the run in `out_dir`.

    Several processes share the shards: each starts with its own part, then does what is left of the others, so the
    shards of a killed process are done too. The files do not depend on the number of processes.
    [`~blip_hf.capfilt.scores.RunFolder`] lists the files in `out_dir`.

    Args:
        engine (`CapFilt`):
            The models and their settings.
        source (`str`, `Path`, or a list of them):
            Pairs, as [`~blip_hf.data.readers.find_shards`] reads them.
        out_dir (`str` or `Path`):
            Output folder, the same for all processes.
        image_root (`str` or `Path`, *optional*):
            Folder that relative image paths start from.
        allow_outside (`bool`, *optional*, defaults to `False`):
            As in [`~blip_hf.data.readers.find_shards`].
        shard_size (`int`, *optional*, defaults to 1000):
            Records per shard, for sources that are not split into files.
        rule (`Rule`, *optional*):
            Texts to keep. Defaults to those with an ITM probability of at least 0.5. With `keep_share` the last process
            writes the pairs once all texts are scored.
        format (`str`, *optional*, defaults to `"parquet"`):
            Format of the pairs, see [`~blip_hf.capfilt.writers.write_pairs`].
        process_index (`int`, *optional*, defaults to 0):
            Index of this process.
        num_processes (`int`, *optional*, defaults to 1):
            Number of processes.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether the first process shows a progress bar.

    Returns:
        `dict`: the totals of [`~blip_hf.capfilt.report.build_report`].

    Raises:
        ValueError: If `out_dir` holds a run with other settings, or the source does not exist.
    """
    run = Run.create(out_dir, source, image_root, allow_outside, shard_size, rule, format)
    locks = Locks(run.folder.locks_folder)
    with locks.hold("run", wait=True):
        shards, models = run.start(engine.identities(), engine.settings)
    is_shown = show_progress and process_index == 0
    with Progress.open(run.folder, len(shards), num_processes, is_shown) as progress:
        local.write_shards(
            engine, run, models, shards, locks, progress, process_index=process_index, num_processes=num_processes
        )
    with locks.hold("run", wait=True):
        totals = run.finish()
        locks.remove_files()
    return totals


__all__ = ["Totals", "run_capfilt"]
