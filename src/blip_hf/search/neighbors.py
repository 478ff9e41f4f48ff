# SPDX-License-Identifier: BSD-3-Clause
"""Nearest neighbours by cosine with faiss: exact for few vectors, and an inverted file (IVF) for many.

The inverted file proposes candidates among vectors of 8 bits an entry, and the exact cosines of the stored vectors rank them.
It is a file beside the index that can be built again at any time; rows that it does not cover yet are searched exactly.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic_write
from .store import Store


EXACT_LIMIT = 50_000
"""Largest number of vectors that are compared with each query one by one."""
NUM_PROBES = 1024
"""Lists of the inverted file that a query looks into: one in sixteen for a million vectors."""
CANDIDATES_PER_RESULT = 4
_TRAINING_VECTORS_PER_LIST = 40  # faiss warns below 39
_BLOCK = 65_536
_IVF_NAME = "vectors.faiss"


class Neighbors:
    """Searches the vectors of an index.

    Args:
        store (`Store`):
            Files of the index.
        exact (`bool`, *optional*, defaults to `False`):
            Whether to compare a query with every vector, however many there are.
    """

    def __init__(self, store: Store, *, exact: bool = False) -> None:
        self.faiss = import_faiss()
        self.vectors = store.vectors()
        path = ivf_path(store.folder)
        self.ivf: Any = (
            None if exact or not path.is_file() else self.faiss.read_index(str(path), self.faiss.IO_FLAG_MMAP)
        )

    def search(
        self, queries: np.ndarray, k: int, rows: np.ndarray, *, num_probes: int = NUM_PROBES
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` nearest of the sorted `rows` for each query.

        Args:
            queries (`np.ndarray` of shape `(q, d)`):
                Vectors.
            k (`int`):
                Number of neighbours; fewer if there are fewer rows.
            rows (`np.ndarray` of shape `(r,)`):
                The rows to search.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: rows and dot products, `(q, k)` each, best first. -1 and -inf where the
            inverted file has found fewer.
        """
        k = min(k, len(rows))
        if k == 0:
            return _no_neighbors(len(queries))
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if self.ivf is None or len(rows) <= EXACT_LIMIT:
            return self._search_exactly(queries, k, rows)
        covered, rest = np.split(rows, [np.searchsorted(rows, self.ivf.ntotal)])
        candidates = self._candidates(queries, CANDIDATES_PER_RESULT * k, covered, num_probes)
        found = [self._rank(queries, candidates, k)]
        if len(rest):
            found.append(self._search_exactly(queries, min(k, len(rest)), rest))
        return _merge(found, k)

    def _search_exactly(self, queries: np.ndarray, k: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        best = _no_neighbors(len(queries))
        for start in range(0, len(rows), _BLOCK):
            own = rows[start : start + _BLOCK]
            is_range = own[-1] - own[0] + 1 == len(own)
            block = self.vectors[own[0] : own[-1] + 1] if is_range else self.vectors[own]  # a range is not copied
            products, index = self.faiss.knn(queries, block, min(k, len(own)), metric=self.faiss.METRIC_INNER_PRODUCT)
            found = own[index], products
            best = _merge([best, found], k)
        return best

    def _candidates(self, queries: np.ndarray, number: int, rows: np.ndarray, num_probes: int) -> np.ndarray:
        parameters = self.faiss.SearchParametersIVF(nprobe=num_probes)
        if len(rows) < self.ivf.ntotal:
            bits = np.zeros(self.ivf.ntotal, dtype=np.bool_)
            bits[rows] = True
            selector = self.faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))
            parameters = self.faiss.SearchParametersIVF(sel=selector, nprobe=num_probes)
        _, index = self.ivf.search(queries, number, params=parameters)
        return index

    def _rank(self, queries: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        vectors = self.vectors[np.maximum(candidates, 0)]  # (q, c, d)
        products = np.einsum("qd,qcd->qc", queries, vectors)
        return _merge([(candidates, np.where(candidates < 0, -np.inf, products))], k)


def refresh_ivf(store: Store) -> bool:
    """Builds the inverted file, or adds the new rows to it. Returns whether there was something to do."""
    faiss = import_faiss()
    path = ivf_path(store.folder)
    num_rows = store.num_rows()
    ivf = faiss.read_index(str(path)) if path.is_file() else None
    num_covered = 0 if ivf is None else ivf.ntotal
    if num_rows - num_covered <= (EXACT_LIMIT if ivf is None else EXACT_LIMIT // 5):
        return False
    vectors = store.vectors()
    if ivf is None or num_rows > 4 * _num_vectors_of(ivf.nlist):  # too few lists
        ivf, num_covered = train_ivf(vectors), 0
    for start in range(num_covered, num_rows, _BLOCK):
        ivf.add(np.ascontiguousarray(vectors[start : start + _BLOCK]))
    with atomic_write(path) as beside:
        faiss.write_index(ivf, str(beside))
    return True


def train_ivf(vectors: np.ndarray) -> Any:
    """An empty inverted file with `4 * sqrt(n)` lists, as faiss recommends for up to some millions of vectors."""
    faiss = import_faiss()
    num_lists = _num_lists_for(len(vectors))
    ivf = faiss.index_factory(vectors.shape[1], f"IVF{num_lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    num_training = min(len(vectors), _TRAINING_VECTORS_PER_LIST * num_lists)
    chosen = np.random.default_rng(0).choice(len(vectors), num_training, replace=False)
    ivf.train(np.ascontiguousarray(vectors[np.sort(chosen)]))
    return ivf


def _num_lists_for(num_vectors: int) -> int:
    return int(4 * math.sqrt(num_vectors))


def _num_vectors_of(num_lists: int) -> float:
    return (num_lists / 4) ** 2


def ivf_path(folder: Path) -> Path:
    """The file of the inverted file."""
    return folder / _IVF_NAME


def _no_neighbors(num_queries: int) -> tuple[np.ndarray, np.ndarray]:
    return np.empty((num_queries, 0), dtype=np.int64), np.empty((num_queries, 0), dtype=np.float32)


def _merge(found: Sequence[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best rows of each query with their products; of equal ones the lower row first."""
    rows = np.concatenate([rows for rows, _ in found], axis=1)
    products = np.concatenate([products for _, products in found], axis=1)
    order = np.lexsort((rows, -products), axis=1)[:, :k]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(products, order, axis=1)


def import_faiss() -> Any:
    """The library, or an error that names the extra."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "Searching images needs faiss, which is not installed: pip install 'blip_hf[search]'"
        ) from error
    return faiss


__all__ = ["EXACT_LIMIT", "NUM_PROBES", "Neighbors", "import_faiss", "ivf_path", "refresh_ivf", "train_ivf"]
