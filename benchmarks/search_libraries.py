# SPDX-License-Identifier: BSD-3-Clause
"""Recall and times of vector libraries on the synthetic vectors of `benchmarks.search`, to choose one.

    pip install usearch lancedb
    python -m benchmarks.search_libraries --vectors 200000

Libraries that are not installed are skipped. Each proposes 40 candidates, whose exact dot products give the best 10. The last
line of the output is JSON.
"""

import argparse
import importlib.util
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

from blip_hf.search.neighbors import import_faiss, train_ivf

from .search import WIDTH, K, draw_vectors, percentiles, recall


NUM_QUERIES = 500
NUM_CANDIDATES = 40
Search = Callable[[np.ndarray], np.ndarray]
"""Rows of the candidates of a query."""


def faiss_ivf(vectors: np.ndarray) -> Iterator[tuple[str, Search]]:
    """The inverted file of this package."""
    index = train_ivf(vectors)
    index.add(vectors)
    for probes in (16, 64, 256):
        index.nprobe = probes
        yield f"faiss IVF SQ8, {probes} lists", lambda query: index.search(query[None], NUM_CANDIDATES)[1][0]


def faiss_hnsw(vectors: np.ndarray) -> Iterator[tuple[str, Search]]:
    """The graph of faiss."""
    faiss = import_faiss()
    index = faiss.index_factory(WIDTH, "HNSW32,SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors[:100_000])
    index.add(vectors)
    for effort in (64, 256):
        index.hnsw.efSearch = effort
        yield f"faiss HNSW SQ8, ef {effort}", lambda query: index.search(query[None], NUM_CANDIDATES)[1][0]


def usearch_hnsw(vectors: np.ndarray) -> Iterator[tuple[str, Search]]:
    """The graph of usearch."""
    from usearch.index import Index

    index = Index(ndim=WIDTH, metric="ip", dtype="f16")
    index.add(np.arange(len(vectors)), vectors)
    for effort in (64, 256):
        index.expansion_search = effort
        yield f"usearch f16, ef {effort}", lambda query: np.ravel(index.search(query, NUM_CANDIDATES).keys).astype(int)


def lancedb_ivf(vectors: np.ndarray) -> Iterator[tuple[str, Search]]:
    """The inverted file with product quantisation of LanceDB, which re-ranks candidates by its own stored vectors."""
    import lancedb
    import pyarrow

    with tempfile.TemporaryDirectory() as folder:
        column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), WIDTH)
        content = pyarrow.table({"row": np.arange(len(vectors)), "vector": column})
        table = lancedb.connect(folder).create_table("vectors", content)
        table.create_index(
            metric="dot", num_partitions=math.isqrt(len(vectors)), num_sub_vectors=32, index_type="IVF_PQ"
        )

        def search(query: np.ndarray) -> np.ndarray:
            found = table.search(query).distance_type("dot").nprobes(64).refine_factor(10).limit(NUM_CANDIDATES)
            return found.to_arrow()["row"].to_numpy()

        yield "LanceDB IVF PQ, 64 lists, refined", search


LIBRARIES = {"faiss": (faiss_ivf, faiss_hnsw), "usearch": (usearch_hnsw,), "lancedb": (lancedb_ivf,)}


def measure(vectors: np.ndarray, queries: np.ndarray) -> Iterator[dict[str, float | str]]:
    """A row for each library and effort."""
    faiss = import_faiss()
    _, wanted = faiss.knn(queries, vectors, K, metric=faiss.METRIC_INNER_PRODUCT)
    for library, ways in LIBRARIES.items():
        if importlib.util.find_spec(library) is None:
            continue
        for way in ways:
            start, build_seconds = time.perf_counter(), None
            for name, search in way(vectors):
                build_seconds = build_seconds or time.perf_counter() - start
                seconds, found = [], []
                for query in queries:
                    begin = time.perf_counter()
                    rows = search(query)
                    rows = rows[rows >= 0]
                    found.append(rows[np.argsort(-(vectors[rows] @ query))[:K]])
                    seconds.append(time.perf_counter() - begin)
                yield {
                    "index": name,
                    "build_seconds": build_seconds,
                    "recall": recall(found, wanted),
                    **percentiles(seconds),
                }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=200_000, help="number of synthetic vectors")
    options = parser.parse_args()
    print("| index | build, s | recall at 10 | p50, ms | p99, ms |\n|---|---|---|---|---|")
    rows = []
    for row in measure(draw_vectors(options.vectors, 1), draw_vectors(NUM_QUERIES, 0)):
        rows.append(row)
        print(
            f"| {row['index']} | {row['build_seconds']:.0f} | {row['recall']:.4f} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} |",
            flush=True,
        )
    print(json.dumps({"job": "search_libraries", "vectors": options.vectors, "rows": rows}))


if __name__ == "__main__":
    main()
