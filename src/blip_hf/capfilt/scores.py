# SPDX-License-Identifier: BSD-3-Clause
"""The table of scores, with one row per text, and the paths of the files of a run."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from transformers.utils import logging

from ..files import atomic_write


logger = logging.get_logger(__name__)

SOURCES = ("web", "synthetic", "human")

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image", pa.string(), nullable=False),  # its path, or "" if the source holds its bytes
        pa.field("text_index", pa.int32(), nullable=False),  # index among the texts of its sample
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # one of SOURCES
        pa.field("itm", pa.float32()),  # probability of a match
        pa.field("itc", pa.float32()),  # cosine similarity of image and text
        pa.field("log_prob", pa.float32()),  # of a synthetic text, by the captioner
    ]
)


@dataclass(frozen=True)
class RunFolder:
    """Paths of the files of a run.

    ```
    run.json                settings of the run
    source.json             digests of the files of the source
    scores/<shard>.parquet  scores of all texts, kept or not: the last file that is written of a shard
    skipped/<shard>.json    skipped records and texts, with the reason
    pairs/<shard>.*         the pairs that were kept
    summary.json            the totals, once all shards are done
    report.html, .json      output of `write_report`
    locks/                  lock files of the shards that processes work on
    ```
    """

    root: str | os.PathLike[str]

    @property
    def settings(self) -> Path:
        """The settings of the run."""
        return Path(self.root, "run.json")

    @property
    def source_digests(self) -> Path:
        """Digests of the source."""
        return Path(self.root, "source.json")

    @property
    def summary(self) -> Path:
        """The totals."""
        return Path(self.root, "summary.json")

    @property
    def scores_folder(self) -> Path:
        """Folder of the scores."""
        return Path(self.root, "scores")

    @property
    def skipped_folder(self) -> Path:
        """Folder of the skipped records."""
        return Path(self.root, "skipped")

    @property
    def pairs_folder(self) -> Path:
        """Folder of the pairs."""
        return Path(self.root, "pairs")

    @property
    def locks_folder(self) -> Path:
        """Folder of the lock files."""
        return Path(self.root, "locks")

    def scores(self, shard_name: str) -> Path:
        """Scores of a shard."""
        return self.scores_folder / f"{shard_name}.parquet"

    def skipped(self, shard_name: str) -> Path:
        """Skipped records of a shard."""
        return self.skipped_folder / f"{shard_name}.json"

    def pairs(self, shard_name: str) -> Path:
        """Path of the pairs of a shard, without the suffix of their format."""
        return self.pairs_folder / shard_name

    def score_files(self) -> list[Path]:
        """The score files of all shards that are done, in order."""
        return sorted(self.scores_folder.glob("*.parquet"))

    def skipped_files(self) -> list[Path]:
        """The lists of skipped records of all shards, in order."""
        # Runs of version 0.1 wrote them to `faults`.
        return sorted([*self.skipped_folder.glob("*.json"), *Path(self.root, "faults").glob("*.json")])

    def tables(self) -> Iterator[pa.Table]:
        """Reads the scores of all shards that are done, one by one."""
        return map(read_scores, self.score_files())


def is_whole_table(path: Path) -> bool:
    """Returns whether a score file is whole; removes a damaged one, with a warning, so that its shard is done again."""
    try:
        pq.ParquetFile(path).close()
    except (pa.ArrowInvalid, OSError) as error:
        logger.warning(f"{path} is damaged and its shard is done again: {str(error).splitlines()[0]}")
        path.unlink(missing_ok=True)
        return False
    return True


def write_scores(table: pa.Table, path: str | os.PathLike[str]) -> None:
    """Writes the scores of a shard, rows of `SCHEMA`; the file appears once it is complete."""
    with atomic_write(path) as temporary:
        pq.write_table(table.cast(SCHEMA), temporary, compression="zstd")


def read_scores(path: str | os.PathLike[str]) -> pa.Table:
    """Reads the scores of a shard: rows of `SCHEMA`, in the order of the samples."""
    return pq.ParquetFile(path).read()


__all__ = ["SCHEMA", "SOURCES", "RunFolder", "read_scores", "write_scores"]
