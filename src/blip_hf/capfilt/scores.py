# SPDX-License-Identifier: BSD-3-Clause
"""The table of all scores, one row a text, and where the files of a run lie."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import atomic_write


SOURCES = ("web", "synthetic", "human")

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image", pa.string(), nullable=False),  # its path, or "" where the source holds its bytes
        pa.field("text_index", pa.int32(), nullable=False),  # among the texts of its sample
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # one of SOURCES
        pa.field("itm", pa.float32()),  # probability of "matched", after the softmax
        pa.field("itc", pa.float32()),  # cosine of image and text
        pa.field("log_prob", pa.float32()),  # of a synthetic text under the captioner
    ]
)


@dataclass(frozen=True)
class RunFolder:
    """Where the files of a run lie.

    ```
    run.json               settings of the run
    scores/<shard>.parquet scores of all texts, kept or not: a shard is done when this is there
    faults/<shard>.json    what was left out
    pairs/<shard>.*        the pairs that were kept
    summary.json           the totals, when all shards are done
    report.html, .json     what `write_report` makes of it
    claims.lock            which shards processes are at
    ```

    Args:
        root (`str` or `Path`):
            The folder.
    """

    root: str | os.PathLike[str]

    @property
    def settings(self) -> Path:
        """The settings."""
        return Path(self.root, "run.json")

    @property
    def scores_folder(self) -> Path:
        """The folder of the scores."""
        return Path(self.root, "scores")

    @property
    def faults_folder(self) -> Path:
        """The folder of the faults."""
        return Path(self.root, "faults")

    @property
    def pairs_folder(self) -> Path:
        """The folder of the pairs."""
        return Path(self.root, "pairs")

    def scores(self, shard_name: str) -> Path:
        """The scores of a shard."""
        return self.scores_folder / f"{shard_name}.parquet"

    def faults(self, shard_name: str) -> Path:
        """The faults of a shard."""
        return self.faults_folder / f"{shard_name}.json"

    def pairs(self, shard_name: str) -> Path:
        """The pairs of a shard, without the suffix that tells their format."""
        return self.pairs_folder / shard_name

    def score_files(self) -> list[Path]:
        """The scores of all shards that are done, in order."""
        return sorted(self.scores_folder.glob("*.parquet"))

    def tables(self) -> Iterator[pa.Table]:
        """The scores of all shards that are done, one after the other."""
        return map(read_scores, self.score_files())


def write_scores(table: pa.Table, path: str | os.PathLike[str]) -> None:
    """Writes the scores of a shard, which appear under their name only when they are whole.

    Args:
        table (`pyarrow.Table`):
            Rows of `SCHEMA`.
        path (`str` or `Path`):
            The file.
    """
    with atomic_write(path) as beside:
        pq.write_table(table.cast(SCHEMA), beside, compression="zstd")


def read_scores(path: str | os.PathLike[str]) -> pa.Table:
    """Reads the scores of a shard.

    Args:
        path (`str` or `Path`):
            The file.

    Returns:
        `pyarrow.Table`: rows of `SCHEMA`, in the order of the samples.
    """
    return pq.ParquetFile(path).read()


__all__ = ["SCHEMA", "SOURCES", "RunFolder", "read_scores", "write_scores"]
