# SPDX-License-Identifier: BSD-3-Clause
"""Streams of image-text pairs: speed beside `webdataset` and `datasets`, memory, and counts of bad records.

Writes tars, a JSON list and a Parquet file of 16-pixel JPEGs with 50 kinds of bad record among them (2.5 GB at base size, in
the folder `TMPDIR`). Memory and counts come from one pass over all records, each in its own process; the other libraries
read the tars alone. Speed comes from rounds that alternate, on a tenth of the tars. All of them decode the images, have a
shuffle buffer of the same size where they shuffle, and skip bad records. Only ours counts them.
"""

import json
import multiprocessing
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any

import psutil
from transformers import TrainingArguments

from blip_hf.data.readers import Sample, find_shards
from blip_hf.data.skips import SkipCounts, image_reason
from blip_hf.data.streams import PairStream
from blip_hf.image_utils import UnreadableImageError
from blip_hf.training.streaming import make_stream_loader

from .environment import describe
from .growth import RESULTS
from .harness import OURS, Case, parse_options, print_row, run_case
from .stream_files import StreamFiles, write_stream_files
from .stream_rivals import read_datasets, read_webdataset


SIZES = {"base": (1_000_000, 100), "small": (100_000, 20), "tiny": (1_000, 4)}  # records, and tars of them
BATCH_SIZE = 32
BUFFER_SIZE = 1024
WORKERS = (0, 2)
TARGET = 0.67  # of the speed of webdataset, which does not count bad records


def main(argv: Sequence[str] | None = None, folder: Path = RESULTS) -> dict[str, Any]:
    """Measures memory and speed, writes a plot, and prints each result and JSON."""
    options = parse_options(argv)
    with tempfile.TemporaryDirectory() as temporary:
        files = write_stream_files(Path(temporary), *SIZES[options.size_name])
        passes, rows = {}, []
        for name in PASSES:
            passes[name] = run_pass(name, files)
            print_pass(name, passes[name])
        for case in cases(files):
            rows.append(run_case(case, options))
            print_row(rows[-1])
    folder.mkdir(parents=True, exist_ok=True)
    plot(passes, folder / f"streams-{options.size_name}.png")
    about = {"job": "streams", "size": options.size_name, "rounds": options.rounds, **describe(options.device)}
    about["versions"] |= {name: version(name) for name in ("datasets", "torchdata", "webdataset")}
    found = {"rows": rows, "num_records": files.num_records, "bad_records": files.by_reason, "passes": passes}
    print(json.dumps(about | found))
    return about | found


# Ours


def training_pairs(stream: PairStream, num_pairs: int, num_workers: int = 0) -> Iterator[Any]:
    """The first pairs of the loader of training, in whole batches. The loader itself is endless."""
    args = TrainingArguments(use_cpu=True, dataloader_pin_memory=False, dataloader_num_workers=num_workers)
    loader = make_stream_loader(stream, list, args, BATCH_SIZE)
    return chain.from_iterable(islice(loader, num_pairs // BATCH_SIZE))


def capfilt_images(paths: Sequence[str], counts: SkipCounts) -> Iterator[Any]:
    """The images of CapFilt's reader, in order."""
    for shard in find_shards(paths):
        for item in shard.samples():
            if not isinstance(item, Sample):
                counts.add(item.reason, item.sample_id)
                continue
            try:
                image = item.open_image()
            except UnreadableImageError as error:
                counts.add(image_reason(error.kind), item.sample_id)
                continue
            counts.num_usable += 1
            yield image


# Memory and counts


def training_pass(files: StreamFiles) -> dict[str, Any]:
    """An epoch of the loader of training."""
    stream = PairStream(find_shards([*files.tars, *files.others]), buffer_size=BUFFER_SIZE)
    measured = watch(training_pairs(stream, files.num_usable), files.num_usable // BATCH_SIZE * BATCH_SIZE)
    deque(stream, maxlen=0)  # the rest of the epoch: less than a batch, and the bad records behind it
    return measured | counted(stream.skips, files)


def capfilt_pass(files: StreamFiles) -> dict[str, Any]:
    """All images of CapFilt's reader."""
    counts = SkipCounts()
    measured = watch(capfilt_images([*files.tars, *files.others], counts), files.num_usable)
    return measured | counted(counts, files)


def rival_pass(read: Callable[..., Iterator[Any]], files: StreamFiles) -> dict[str, Any]:
    """All pairs of the tars by another library."""
    batches = read(list(files.tars), buffer_size=BUFFER_SIZE, batch_size=BATCH_SIZE)
    return watch(chain.from_iterable(batches), sum(files.tars.values()))


PASSES: dict[str, Callable[[StreamFiles], dict[str, Any]]] = {
    "training": training_pass,
    "capfilt": capfilt_pass,
    "webdataset": partial(rival_pass, read_webdataset),
    "datasets": partial(rival_pass, read_datasets),
}


def run_pass(name: str, files: StreamFiles) -> dict[str, Any]:
    """One pass in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(PASSES[name], files).result()


def watch(records: Iterable[Any], num_expected: int) -> dict[str, Any]:
    """Number of records and seconds, with the resident memory of this process at each tenth."""
    process, mib, num_read = psutil.Process(), [], 0
    start = time.perf_counter()
    for num_read, _ in enumerate(records, start=1):
        if num_read % (num_expected // 10) == 0:
            mib.append(round(process.memory_info().rss / 2**20, 1))
    seconds = time.perf_counter() - start
    return {"num_read": num_read, "records_per_second": round(num_read / seconds, 1), "mib": mib}


def counted(counts: SkipCounts, files: StreamFiles) -> dict[str, Any]:
    """The counts of a pass, and whether they equal what was written."""
    is_exact = (counts.num_usable, counts.by_reason) == (files.num_usable, files.by_reason)
    return {"num_usable": counts.num_usable, "by_reason": dict(counts.by_reason), "is_exact": is_exact}


def print_pass(name: str, found: Mapping[str, Any]) -> None:
    """Prints a pass."""
    memory = f"{min(found['mib']):.0f} to {max(found['mib']):.0f} MiB"
    skipped = f"skipped {found['by_reason']}, exact: {found['is_exact']}" if "by_reason" in found else "no counts"
    print(f"{name:>12}  {found['records_per_second']:8.0f} records/s  {memory}  {skipped}", flush=True)


def plot(passes: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Plots the memory at each tenth of a pass."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4))
    for name, found in passes.items():
        tenths = range(1, len(found["mib"]) + 1)
        axis.plot([tenth * found["num_read"] / 10 for tenth in tenths], found["mib"], marker="o", label=name)
    axis.set_xlabel("records")
    axis.set_ylabel("resident memory, MiB")
    axis.set_ylim(0, 1.2 * max(max(found["mib"]) for found in passes.values()))
    axis.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


# Speed


def cases(files: StreamFiles) -> Iterator[Case]:
    """Shuffled streams for training without and with loader workers, and CapFilt's reader in order."""
    paths = list(files.tars)[: max(4, len(files.tars) // 10)]
    num_pairs = sum(files.tars[path] for path in paths)

    def case(name: str, ours: Callable[[], Iterator[Any]], buffer_size: int, num_workers: int) -> Case:
        settings = {"buffer_size": buffer_size, "batch_size": BATCH_SIZE, "num_workers": num_workers}
        rivals = {"webdataset": read_webdataset, "datasets": read_datasets}
        ways = {rival: partial(_count_pairs, read, paths, **settings) for rival, read in rivals.items()}
        name = f"{name}, {num_workers} workers, {num_pairs} records"
        return Case(name, {OURS: lambda: sum(1 for _ in ours()), **ways}, {"webdataset": TARGET}, has_tensors=False)

    for num_workers in WORKERS:

        def ours(num_workers: int = num_workers) -> Iterator[Any]:
            stream = PairStream(find_shards(paths), buffer_size=BUFFER_SIZE)
            return training_pairs(stream, num_pairs, num_workers)

        yield case("training's loader", ours, BUFFER_SIZE, num_workers)
    yield case("CapFilt's reader", lambda: capfilt_images(paths, SkipCounts()), 0, 0)


def _count_pairs(read: Callable[..., Iterator[Sequence[Any]]], paths: Sequence[str], **settings: int) -> int:
    return sum(len(batch) for batch in read(paths, **settings))


if __name__ == "__main__":
    main()
