# SPDX-License-Identifier: BSD-3-Clause
"""Places of records in a JSON file, to join large lists by id without their content in memory.

Places are in temporary files, which are memory-mapped.
"""

import json
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from .arrow_cache import writable_folder


# `key` is that of an id, or a row of another list.
PLACE = np.dtype([("key", np.int64), ("start", np.int64), ("size", np.int32)])
_ROWS_PER_WRITE = 10_000


def store_places(places: Iterator[tuple[int, int, int]]) -> np.ndarray:
    """Key, first byte and size of records in a temporary file, which is removed with the array."""
    with tempfile.TemporaryFile(dir=writable_folder()) as file:
        batch: list[tuple[int, int, int]] = []
        for place in places:
            batch.append(place)
            if len(batch) == _ROWS_PER_WRITE:
                file.write(np.array(batch, PLACE))
                batch.clear()
        file.write(np.array(batch, PLACE))
        file.flush()
        return np.memmap(file, PLACE, mode="r")


def read_place(file: BinaryIO, place: np.void) -> Any:
    """Parses the record at a place."""
    file.seek(int(place["start"]))
    return json.loads(file.read(int(place["size"])))


def key_of(own_id: int | str) -> int:
    """The id, or a hash of 64 bits: with 10,000,000 texts, two are equal with a probability of 3e-6."""
    return own_id if isinstance(own_id, int) else hash((own_id,))  # hash("") is 0, a usual id


class IdIndex:
    """Finds records by the keys of their ids. As in a mapping, the last record with an id replaces the content of the first."""

    def __init__(self, all_keys: np.ndarray) -> None:
        order = np.argsort(all_keys, kind="stable").astype(np.uint32)
        keys = all_keys[order]
        is_start = np.concatenate([[True], keys[1:] != keys[:-1]])
        self.keys = keys[is_start]
        self.rows = order[is_start]  # the first record with each key
        # For each first record the last one with the same key, otherwise -1.
        self.newest = np.full(len(all_keys), -1, np.int32)
        self.newest[self.rows] = order[np.concatenate([is_start[1:], [True]])]

    def row_of(self, key: int) -> int | None:
        """The first record with a key."""
        position = self.keys.searchsorted(key)
        return int(self.rows[position]) if position < len(self.keys) and self.keys[position] == key else None


__all__ = ["PLACE", "IdIndex", "key_of", "read_place", "store_places"]
