# SPDX-License-Identifier: BSD-3-Clause
"""A file of equal rows of numbers that grows at its end and is memory-mapped for reading."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..files import DiskFullError, is_disk_full


class RowFile:
    """Rows of one shape and dtype in a file without a header.

    Whoever counts the rows counts them elsewhere, after `append`: rows beyond the count are of a process that was killed.
    """

    def __init__(self, path: Path, shape: Sequence[int], dtype: str) -> None:
        self.path = path
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.row_bytes = math.prod(self.shape) * self.dtype.itemsize

    def truncate(self, num_rows: int) -> None:
        """Removes the rows from `num_rows` on. Raises `ValueError` if there are fewer."""
        self.check(num_rows)
        with self.path.open("ab") as file:
            file.truncate(num_rows * self.row_bytes)

    def check(self, num_rows: int) -> None:
        """Raises `ValueError` if the file has fewer rows."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size < num_rows * self.row_bytes:
            raise ValueError(
                f"{self.path} is damaged: it has {size:,} bytes, and {num_rows:,} rows take {num_rows * self.row_bytes:,}."
                " Build the index again with --overwrite."
            )

    def append(self, rows: np.ndarray) -> None:
        """Writes rows to the disk."""
        try:
            with self.path.open("ab") as file:
                file.write(np.ascontiguousarray(rows, dtype=self.dtype).tobytes())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if is_disk_full(error):
                raise DiskFullError(self.path, f"{len(rows) * self.row_bytes:,} bytes") from error
            raise

    def read(self, num_rows: int) -> np.ndarray:
        """The first `num_rows` rows, `(num_rows, *shape)`, memory-mapped."""
        if num_rows == 0:
            return np.empty((0, *self.shape), dtype=self.dtype)
        self.check(num_rows)
        return np.memmap(self.path, mode="r", dtype=self.dtype, shape=(num_rows, *self.shape))


__all__ = ["RowFile"]
