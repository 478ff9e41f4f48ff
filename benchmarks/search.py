# SPDX-License-Identifier: BSD-3-Clause
"""Recall, times and memory of searching images.

    python -m benchmarks.search --model runs/demo/retriever --photos flickr8k/images

First, 1,000,000 synthetic vectors of width 256: noisy copies of 20,000 random directions. The standard deviation of entry i falls
as 1 / sqrt(i), since features of trained models have few strong directions too. Recall at 10 is against exact search of the same
library over all vectors. Each stage runs in its own process, so that its memory is its own; `memory` is the
growth of the resident memory, with the touched pages of mapped files.

Second, with `--model`, the photos of a folder (7,000 of them): `blip-hf index` against a script of 12 lines that encodes them in order
and saves a tensor, which queries compare with `topk`. Both are whole processes, with their imports, in turn; medians of `--rounds`.
Skipped if the folder does not exist.

Writes `benchmarks/results/search.json`. The last line of the output is JSON.
"""

import argparse
import datetime
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blip_hf.evaluation.features import text_features
from blip_hf.files import atomic_write
from blip_hf.image_files import list_images
from blip_hf.search.encoder import RetrievalEncoder
from blip_hf.search.index import BlipIndex
from blip_hf.search.neighbors import Neighbors, ivf_path, refresh_ivf
from blip_hf.search.store import Store, StoredImage

from .environment import describe
from .growth import RESULTS


WIDTH = 256
NUM_CENTERS = 20_000
NOISE = 0.8  # relative to the centres
NUM_QUERIES = 1000
K = 10
PROBES = (16, 64, 256, 1024)
BLOCK = 50_000
TEXT = "two dogs play on the grass"
# What a user writes without an index.
TWELVE_LINES = """
import sys
from pathlib import Path

import torch
from blip_hf import BlipForImageTextRetrieval, BlipProcessor
from blip_hf.evaluation.features import image_features

model = BlipForImageTextRetrieval.from_pretrained(sys.argv[1]).eval()
processor = BlipProcessor.from_pretrained(sys.argv[1])
paths = sorted(Path(sys.argv[2]).iterdir())
vectors = image_features(model, processor, paths)
torch.save(vectors, sys.argv[3])
"""


def draw_vectors(number: int, seed: int) -> np.ndarray:
    """Unit vectors around random directions, `(number, 256)`."""
    spectrum = np.arange(1, WIDTH + 1, dtype=np.float32) ** -0.5
    centers = spectrum * np.random.default_rng(0).standard_normal((NUM_CENTERS, WIDTH), dtype=np.float32)
    generator = np.random.default_rng(seed)
    noise = NOISE * spectrum * generator.standard_normal((number, WIDTH), dtype=np.float32)
    vectors = centers[generator.integers(NUM_CENTERS, size=number)] + noise
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_store(folder: Path, number: int) -> dict[str, float]:
    """Writes an index of synthetic vectors without its inverted file."""
    store = Store.create(folder, {"width": WIDTH, "states": None})
    start = time.perf_counter()
    for first in range(0, number, BLOCK):
        rows = range(first, min(first + BLOCK, number))
        store.append([str(row) for row in rows], [(640, 480)] * len(rows), draw_vectors(len(rows), 1 + first), None)
        names = (f"/photos/{row // 1000:04d}/{row:08d}.jpg" for row in rows)
        store.put(StoredImage(name=name, source="/photos", row=row) for name, row in zip(names, rows, strict=True))
        store.commit()
    return {"write_seconds": time.perf_counter() - start, "vector_bytes": store.vectors_file.path.stat().st_size}


def build_ivf(folder: Path) -> dict[str, float]:
    """Builds the inverted file."""
    before, start = resident_bytes(), time.perf_counter()
    refresh_ivf(Store(folder))
    seconds = time.perf_counter() - start
    return {
        "build_seconds": seconds,
        "build_memory": peak_bytes() - before,
        "ivf_bytes": ivf_path(folder).stat().st_size,
    }


def query(folder: Path) -> dict[str, Any]:
    """Recall and seconds of single queries, exact and by the inverted file, with the names of the images."""
    store = Store(folder)
    before, start = resident_bytes(), time.perf_counter()
    rows, search = store.live_rows(), Neighbors(store)
    open_seconds = time.perf_counter() - start
    queries = draw_vectors(NUM_QUERIES, 0)
    found = {
        probes: time_queries(store, lambda own, probes=probes: search.search(own, K, rows, num_probes=probes), queries)
        for probes in PROBES
    }
    memory = resident_bytes() - before
    exact = Neighbors(store, exact=True)
    wanted, _ = exact.search(queries, K, rows)
    _, exact_seconds = time_queries(store, lambda own: exact.search(own, K, rows), queries[:20])
    odd = rows[rows % 100 == 1]
    _, filtered = time_queries(store, lambda own: search.search(own, K, odd), queries[:100])
    return {
        "open_seconds": open_seconds,
        "query_memory": memory,
        "exact": percentiles(exact_seconds),
        "filtered_to_1_percent": percentiles(filtered),
        "probes": {
            probes: {"recall": recall(own, wanted), **percentiles(seconds)} for probes, (own, seconds) in found.items()
        },
    }


def time_queries(
    store: Store, search: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], queries: np.ndarray
) -> tuple[np.ndarray, list[float]]:
    """Rows and seconds of each query."""
    search(queries[:1])
    rows, seconds = [], []
    for number in range(len(queries)):
        start = time.perf_counter()
        ((own,), _) = search(queries[number : number + 1])
        for row in own:
            store.images_of(int(row))
        seconds.append(time.perf_counter() - start)
        rows.append(own)
    return np.stack(rows), seconds


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    """Share of the true neighbours that were found."""
    return float(np.mean([len(set(own) & set(best)) / K for own, best in zip(found, wanted, strict=True)]))


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile in milliseconds."""
    return {"p50_ms": 1000 * float(np.quantile(seconds, 0.5)), "p99_ms": 1000 * float(np.quantile(seconds, 0.99))}


def resident_bytes() -> int:
    """Resident memory of this process."""
    return status_bytes("VmRSS")


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    return status_bytes("VmHWM")


def status_bytes(name: str) -> int:
    """A figure of this process that Linux gives in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def measure_vectors(number: int) -> dict[str, Any]:
    """All figures of synthetic vectors."""
    with (
        tempfile.TemporaryDirectory() as folder,
        multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool,
    ):
        result = {"vectors": number, "width": WIDTH, "queries": NUM_QUERIES, "k": K, "nprobe": list(PROBES)}
        for stage, arguments in (
            (write_store, (Path(folder), number)),
            (build_ivf, (Path(folder),)),
            (query, (Path(folder),)),
        ):
            result |= pool.apply(stage, arguments)
            print(f"{stage.__name__}: done", flush=True)
    return result


# Photos


def measure_photos(model: str, photos: Path, number: int, rounds: int) -> dict[str, Any]:
    """Seconds of indexing, searching and re-ranking photos, and of 12 lines of Python."""
    paths = list_images(photos, recursive=True)[:number]
    with tempfile.TemporaryDirectory() as folder, link_photos(paths) as linked:
        command = [sys.executable, "-m", "blip_hf", "index", str(linked), "--model", model, "--output_dir"]
        script = [sys.executable, "-c", TWELVE_LINES, model, str(linked), f"{folder}/vectors.pt"]
        seconds: dict[str, list[float]] = {"baseline_index": [], "index": [], "unchanged": []}
        for round in range(rounds):
            seconds["baseline_index"].append(timed(lambda: subprocess.run(script, check=True))[0])
            for name in ("index", "unchanged"):
                own = [*command, f"{folder}/{round}"]
                seconds[name].append(timed(lambda own=own: subprocess.run(own, check=True))[0])
        encoder = RetrievalEncoder.from_pretrained(model)
        index = BlipIndex(Store(Path(folder, "0")), encoder)
        features = torch.load(f"{folder}/vectors.pt", weights_only=True)

        def search_tensor() -> None:
            (features @ text_features(encoder.model, encoder.processor, [TEXT])[0]).topk(K)

        return {
            "photos": len(paths),
            "rounds": rounds,
            **{f"{name}_seconds": statistics.median(values) for name, values in seconds.items()},
            "baseline_query_ms": median_ms(search_tensor),
            "query_ms": median_ms(lambda: index.search(TEXT, k=K)),
            "rerank_32_ms": median_ms(lambda: index.search(TEXT, k=K, rerank=32)),
            "duplicates_seconds": timed(lambda: index.duplicates(0.99))[0],
        }


@contextmanager
def link_photos(paths: Sequence[Path]) -> Iterator[Path]:
    """A folder with links to the photos."""
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            Path(folder, path.name).symlink_to(path.absolute())
        yield Path(folder)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of a call."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def median_ms(call: Callable[[], Any], rounds: int = 20) -> float:
    """Median milliseconds of a call."""
    call()
    return 1000 * statistics.median(timed(call)[0] for _ in range(rounds))


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The figures as text."""
    if "vectors" in result:
        own = result["vectors"]
        yield (
            f"{own['vectors']:,} vectors: built in {own['build_seconds']:.1f} s with {own['build_memory'] / 1e6:,.0f} MB,"
            f" inverted file of {own['ivf_bytes'] / 1e6:,.0f} MB, opened in {own['open_seconds']:.2f} s, queries with"
            f" {own['query_memory'] / 1e6:,.0f} MB"
        )
        yield "| lists looked into | recall at 10 | p50, ms | p99, ms |\n|---|---|---|---|"
        rows = {
            **{str(probes): values for probes, values in own["probes"].items()},
            "exact": {"recall": 1.0, **own["exact"]},
        }
        for name, values in rows.items():
            yield f"| {name} | {values['recall']:.4f} | {values['p50_ms']:.2f} | {values['p99_ms']:.2f} |"
    if "photos" in result:
        own = result["photos"]
        yield "\n| photos | a script of 12 lines | blip-hf index, search |\n|---|---|---|"
        yield f"| index {own['photos']:,}, s | {own['baseline_index_seconds']:.1f} | {own['index_seconds']:.1f} |"
        yield f"| the same again, s | {own['baseline_index_seconds']:.1f} | {own['unchanged_seconds']:.2f} |"
        yield f"| query, ms | {own['baseline_query_ms']:.1f} | {own['query_ms']:.1f} |"
        yield f"| query with 32 re-ranked, ms | - | {own['rerank_32_ms']:.0f} |"


def main() -> None:
    """Measures, prints and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000, help="number of synthetic vectors, 0 for none")
    parser.add_argument("--model", help="retrieval model for photos")
    parser.add_argument("--photos", type=Path, help="folder of photos")
    parser.add_argument("--number", type=int, default=7000, help="number of photos")
    parser.add_argument("--rounds", type=int, default=3, help="runs of the command and the script")
    parser.add_argument("--output", type=Path, default=RESULTS / "search.json")
    options = parser.parse_args()
    result = {
        "job": "search",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **describe(torch.device("cpu")),
    }
    if options.vectors:
        result["vectors"] = measure_vectors(options.vectors)
        print("\n".join(lines(result)), flush=True)
        write_result(result, options.output)
    if options.model and options.photos and options.photos.is_dir():
        result["photos"] = measure_photos(options.model, options.photos, options.number, options.rounds)
    print("\n".join(lines(result)))
    write_result(result, options.output)
    print(json.dumps(result))


def write_result(result: dict[str, Any], output: Path) -> None:
    """Writes the figures, also those of a part that is done."""
    with atomic_write(output) as path:
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
