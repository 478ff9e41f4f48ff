# SPDX-License-Identifier: BSD-3-Clause
"""The progress bar of a run, and the counts that it shows."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa
from tqdm import tqdm

from .scores import RunFolder


@dataclass(frozen=True)
class Counts:
    """Number of images of a batch, and of its texts by source, in all and kept. No texts if the rule needs all scores."""

    num_images: int
    num_texts: Counter[str]
    num_kept: Counter[str]

    @classmethod
    def of_batch(cls, table: pa.Table, num_images: int, is_kept: Iterable[bool] | None) -> "Counts":
        """Counts the rows of a batch."""
        if is_kept is None:
            return cls(num_images, Counter(), Counter())
        sources = table["source"].to_pylist()
        kept = Counter(source for source, decision in zip(sources, is_kept, strict=True) if decision)
        return cls(num_images, Counter(sources), kept)


@dataclass
class Progress:
    """Progress bar over the images of the run. Their number is estimated from the shards that were done."""

    bar: tqdm
    folder: RunFolder
    num_shards: int
    num_processes: int  # that count for themselves
    num_done: int = 0
    num_texts: Counter[str] = field(default_factory=Counter)
    num_kept: Counter[str] = field(default_factory=Counter)

    @classmethod
    @contextmanager
    def open(cls, folder: RunFolder, num_shards: int, num_processes: int, is_shown: bool) -> Iterator["Progress"]:
        """Shows the bar within the block."""
        with tqdm(unit=" images", desc="CapFilt", disable=not is_shown, smoothing=0.1) as bar:
            yield cls(bar, folder, num_shards, num_processes)

    def add(self, counts: Counts) -> None:
        """Adds a batch."""
        self.num_texts.update(counts.num_texts)
        self.num_kept.update(counts.num_kept)
        if self.num_texts:
            shares = {source: f"{self.num_kept[source] / total:.0%}" for source, total in self.num_texts.items()}
            self.bar.set_postfix_str(" ".join(["kept", *(f"{name} {share}" for name, share in shares.items())]), False)
        self.bar.update(counts.num_images)

    def finish_shard(self) -> None:
        """Updates the estimated number of images."""
        self.num_done += 1
        if not self.bar.disable:
            num_left = self.num_shards - len(self.folder.score_files())
            self.bar.total = round(self.bar.n * (1 + num_left / self.num_processes / self.num_done))
            self.bar.refresh()


__all__ = ["Counts", "Progress"]
