# SPDX-License-Identifier: BSD-3-Clause
"""Nearest neighbours: the inverted file against exact search, filters, and rows that it does not cover yet."""

import numpy as np
import pytest

from blip_hf.search import neighbors
from blip_hf.search.duplicates import find_groups
from blip_hf.search.neighbors import Neighbors, ivf_path, refresh_ivf
from blip_hf.search.store import Store


WIDTH = 16
NUM_CLUSTERS = 40


def clustered(number, seed):
    generator = np.random.default_rng(seed)
    centers = np.random.default_rng(0).standard_normal((NUM_CLUSTERS, WIDTH))
    vectors = centers[generator.integers(NUM_CLUSTERS, size=number)] + 0.3 * generator.standard_normal((number, WIDTH))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def append(store, vectors):
    first = store.num_rows()
    digests = [f"{first + number}" for number in range(len(vectors))]
    store.append(digests, [(1, 1)] * len(vectors), vectors, None)
    store.commit()


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An index of 3000 vectors, which is many here."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(neighbors, "EXACT_LIMIT", 1000)
    store = Store.create(tmp_path, {"width": WIDTH, "states": None})
    append(store, clustered(3000, seed=1))
    return store


def recall(found, wanted):
    return np.mean([len(set(own) & set(best)) / len(best) for own, best in zip(found, wanted, strict=True)])


def best_rows(vectors, queries, rows, k):
    return rows[np.argsort(-(queries @ vectors[rows].T), axis=1, kind="stable")[:, :k]]


def test_the_inverted_file_finds_the_nearest_and_their_exact_cosines(store):
    assert refresh_ivf(store)
    assert not refresh_ivf(store)
    rows, queries = np.arange(3000), clustered(50, seed=2)
    search = Neighbors(store)
    assert search.ivf is not None
    found, cosines = search.search(queries, 10, rows, num_probes=32)  # of 219 lists
    assert recall(found, best_rows(search.vectors, queries, rows, 10)) > 0.95
    np.testing.assert_allclose(cosines, np.einsum("qd,qkd->qk", queries, search.vectors[found]), atol=1e-6)
    exact, _ = Neighbors(store, exact=True).search(queries, 10, rows)
    np.testing.assert_array_equal(exact, best_rows(search.vectors, queries, rows, 10))


def test_only_the_given_rows_are_found(store):
    refresh_ivf(store)
    rows, queries = np.arange(1, 3000, 2), clustered(20, seed=2)
    found, _ = Neighbors(store).search(queries, 10, rows)
    assert set(found[found >= 0] % 2) == {1}
    assert recall(found, best_rows(store.vectors(), queries, rows, 10)) > 0.95
    few, _ = Neighbors(store).search(queries, 10, np.array([4, 8]))
    assert few.shape == (20, 2)
    assert set(few.flatten()) == {4, 8}


def test_new_rows_are_found_before_and_after_the_file_is_extended(store):
    refresh_ivf(store)
    new = clustered(150, seed=3)
    append(store, new)
    rows = np.arange(3150)
    assert not refresh_ivf(store)
    found, _ = Neighbors(store).search(new, 1, rows)
    assert recall(found, 3000 + np.arange(150)[:, None]) == 1
    append(store, clustered(100, seed=4))
    assert refresh_ivf(store)
    assert Neighbors(store).ivf.ntotal == 3250
    found, _ = Neighbors(store).search(new, 1, np.arange(3250))
    assert recall(found, 3000 + np.arange(150)[:, None]) > 0.98


def test_few_vectors_need_no_file(tmp_path):
    pytest.importorskip("faiss")
    store = Store.create(tmp_path, {"width": WIDTH, "states": None})
    found, cosines = Neighbors(store).search(clustered(2, seed=1), 3, np.arange(0))
    assert found.shape == cosines.shape == (2, 0)
    append(store, clustered(5, seed=1))
    assert not refresh_ivf(store)
    assert not ivf_path(tmp_path).exists()
    assert Neighbors(store).search(clustered(2, seed=1), 9, np.arange(5))[0].shape == (2, 5)


def test_a_group_has_all_vectors_near_its_first_however_many(tmp_path):
    pytest.importorskip("faiss")
    store = Store.create(tmp_path, {"width": WIDTH, "states": None})
    first, second = np.eye(WIDTH, dtype=np.float32)[:2]
    between = (first + second) / np.sqrt(np.float32(2))  # at a cosine of 0.71 to both
    append(store, np.stack([second, *[first] * 80, between]))
    rows = np.arange(82)
    assert find_groups(Neighbors(store), rows, 0.9) == [[0], list(range(1, 81)), [81]]
    assert find_groups(Neighbors(store), rows, 0.7) == [[0, 81], list(range(1, 81))]
