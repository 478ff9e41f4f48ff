# SPDX-License-Identifier: BSD-3-Clause
"""Groups of rows whose vectors are nearly equal."""

from collections.abc import Iterator

import numpy as np

from .neighbors import Neighbors


_NUM_NEIGHBORS = 32
_QUERIES = 1024


def find_groups(neighbors: Neighbors, rows: np.ndarray, threshold: float) -> list[list[int]]:
    """Groups of rows, each with the rows whose cosine with its first row is at least `threshold`.

    A row joins the first group that takes it, in order.
    """
    taken: set[int] = set()
    groups = []
    for row, near in _near_rows(neighbors, rows, threshold):
        if row not in taken:
            groups.append([row, *sorted(set(near) - taken - {row})])
            taken.update(groups[-1])
    return groups


def _near_rows(neighbors: Neighbors, rows: np.ndarray, threshold: float) -> Iterator[tuple[int, list[int]]]:
    """Each row, with all rows that are near it."""
    for start in range(0, len(rows), _QUERIES):
        own = rows[start : start + _QUERIES]
        found, cosines = neighbors.search(neighbors.vectors[own], _NUM_NEIGHBORS, rows)
        for row, row_found, row_cosines in zip(own, found, cosines, strict=True):
            k = _NUM_NEIGHBORS
            while row_cosines[-1] >= threshold and k < len(rows):
                k *= 2
                (row_found,), (row_cosines,) = neighbors.search(neighbors.vectors[row][None], k, rows)
            yield int(row), row_found[row_cosines >= threshold].tolist()


__all__ = ["find_groups"]
