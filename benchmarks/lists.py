# SPDX-License-Identifier: BSD-3-Clause
"""Time and memory of loading lists and annotation files of 100,000, 1,000,000 and 10,000,000 records.

Each file is loaded twice, in new processes: the first load writes the Arrow file, the second one maps it into memory.
Memory is that above the imports. Pages of mapped files are counted apart, as the system can drop them at any time. Needs
Linux, and about 500 bytes of disk a record (`vqa`: 2,000), which are freed at the end.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .environment import describe


POLLING_SECONDS = 0.005
FORMATS = ("list", "lines", "coco", "karpathy", "vqa", "nlvr2")
SUFFIXES = {"lines": ".jsonl"}
ANSWERS = ("yes", "no", "2", "white", "on the left", "yes", "yes", "no", "a dog", "yes")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures each list, prints a line for each load, and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--formats", choices=FORMATS, nargs="+", default=list(FORMATS))
    parser.add_argument("--folder", help="for temporary files (default: that of the system)")
    parser.add_argument("--output", type=Path, help="file for the JSON; keeps its rows that are not measured again")
    parser.add_argument("--load", metavar=("FORMAT", "FILE"), nargs=2, help="measure one load in this process")
    options = parser.parse_args(argv)
    if options.load:
        result = measure_load(options.load[0], Path(options.load[1]))
    else:
        result = {"job": "lists", **describe(torch.device("cpu"))}
        rows = [
            row | {"date": result["date"], "commit": result["commit"]}
            for name in options.formats
            for number in options.records
            for row in rows_of(name, number, options)
        ]
        result["rows"] = merge(rows, options.output)
        if options.output:
            options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return result


def merge(rows: list[dict[str, Any]], output: Path | None) -> list[dict[str, Any]]:
    """The rows, and those of the file that are of other measurements, in order."""
    kept = json.loads(output.read_text(encoding="utf-8"))["rows"] if output and output.exists() else []
    by_key = {(FORMATS.index(row["format"]), row["num_records"], row["load"]): row for row in [*kept, *rows]}
    return [row for _, row in sorted(by_key.items())]


def rows_of(file_format: str, num_records: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The first and the second load of a list."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder, f"list{SUFFIXES.get(file_format, '.json')}")
        write_list(path, file_format, num_records)
        file_mb = round(sum(file.stat().st_size for file in Path(folder).iterdir()) / 2**20)
        for load in ("first", "second"):
            command = [sys.executable, "-m", "benchmarks.lists", "--load", file_format, str(path)]
            environment = os.environ | {"HF_DATASETS_CACHE": str(Path(folder, "cache"))}
            output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
            row = {"format": file_format, "load": load, "file_mb": file_mb}
            row |= json.loads(output.splitlines()[-1])
            print(
                f"{file_format:>8} {num_records:>10,} {load:>6}  {row['seconds']:8.2f} s  {row['memory_mb']:6} MB"
                f"  {row['mapped_mb']:6} MB mapped",
                flush=True,
            )
            yield row


def write_list(path: Path, file_format: str, num_records: int) -> None:
    """Writes a list with a path and a caption of 12 words for each record, or a question with 10 answers."""
    if file_format == "vqa":
        write_object(path, "questions", questions(num_records))
        write_object(annotations_of(path), "annotations", annotations(num_records))
        return
    if file_format == "karpathy":
        write_object(path, "images", karpathy_images(num_records))
        return
    with path.open("w", encoding="utf-8") as file:
        if file_format == "lines":
            file.writelines(f"{line}\n" for line in records(num_records))
        elif file_format == "list":
            write_array(file, records(num_records))
        elif file_format == "nlvr2":
            write_array(file, sentences(num_records))
        else:
            file.write('{"images": ')
            write_array(file, (f'{{"id": {i}, "file_name": "{name(i)}"}}' for i in range(num_records)))
            file.write(', "annotations": ')
            write_array(file, (f'{{"image_id": {i}, "caption": "{caption(i)}"}}' for i in range(num_records)))
            file.write("}")


def write_object(path: Path, field: str, items: Iterator[str]) -> None:
    """Writes a JSON object with one array."""
    with path.open("w", encoding="utf-8") as file:
        file.write(f'{{"{field}": ')
        write_array(file, items)
        file.write("}")


def write_array(file: Any, items: Iterator[str]) -> None:
    """Writes a JSON array, one item a line."""
    file.write(f"[{next(items)}")
    file.writelines(f",\n{item}" for item in items)
    file.write("]")


def records(num_records: int) -> Iterator[str]:
    """Records of BLIP's lists."""
    return (f'{{"image": "{name(i)}", "caption": "{caption(i)}"}}' for i in range(num_records))


def karpathy_images(num_records: int) -> Iterator[str]:
    """Images of a file of Karpathy, with one sentence each."""
    return (
        f'{{"filename": "{name(i)}", "split": "train", "imgid": {i}, "sentences": [{{"raw": "{caption(i)}"}}]}}'
        for i in range(num_records)
    )


def questions(num_records: int) -> Iterator[str]:
    """Questions as in the files of VQA."""
    return (
        f'{{"image_id": {i // 5}, "question": "What is number {i} on the left?", "question_id": {i}}}'
        for i in range(num_records)
    )


def annotations(num_records: int) -> Iterator[str]:
    """Their answers."""
    given = ({"answer": answer, "answer_confidence": "yes", "answer_id": i} for i, answer in enumerate(ANSWERS, 1))
    answers = json.dumps(list(given))
    return (
        f'{{"question_type": "what is", "multiple_choice_answer": "yes", "answers": {answers}, "image_id": {i // 5},'
        f' "answer_type": "other", "question_id": {i}}}'
        for i in range(num_records)
    )


def annotations_of(path: Path) -> Path:
    """The file of the answers to a file of questions."""
    return path.with_name("annotations.json")


def sentences(num_records: int) -> Iterator[str]:
    """Records of BLIP's lists of NLVR2."""
    return (
        f'{{"images": ["{name(2 * i)}", "{name(2 * i + 1)}"], "sentence": "{caption(i)}", "label": "True"}}'
        for i in range(num_records)
    )


def name(number: int) -> str:
    """Path of an image."""
    return f"images/{number // 1000:05d}/{number:08d}.jpg"


def caption(number: int) -> str:
    """A caption."""
    return f"a photo of dog number {number} that runs along a beach"


def measure_load(file_format: str, path: Path) -> dict[str, Any]:
    """Seconds and peak memory of a data set for training in this process, without the imports."""
    make_dataset = dataset_maker(file_format)
    with peak_memory() as peak:
        start = time.perf_counter()
        dataset = make_dataset(path)
        seconds = time.perf_counter() - start
        dataset.pairs[len(dataset) - 1]
    return {"num_records": len(dataset), "seconds": round(seconds, 2), **peak}


def dataset_maker(file_format: str) -> Callable[[Path], Any]:
    """Loads a file of a format, and makes the data set of its task."""
    from blip_hf.data.nlvr2 import Nlvr2Dataset
    from blip_hf.data.pairs import PairDataset
    from blip_hf.data.readers import load_nlvr2, load_pairs, load_vqa
    from blip_hf.data.vqa import VqaDataset

    if file_format == "vqa":
        return lambda path: VqaDataset(load_vqa(path, annotations=annotations_of(path)))
    if file_format == "nlvr2":
        return lambda path: Nlvr2Dataset(load_nlvr2(path))
    return lambda path: PairDataset(load_pairs(path))


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Yields the peak of the memory of this process during the block, in MB above the start."""
    start, highest, is_done = memory(), memory(), threading.Event()

    def poll() -> None:
        while not is_done.wait(POLLING_SECONDS):
            highest.update({field: max(highest[field], value) for field, value in memory().items()})

    thread = threading.Thread(target=poll)
    thread.start()
    peak: dict[str, int] = {}
    try:
        yield peak
    finally:
        is_done.set()
        thread.join()
        peak |= {field: round((highest[field] - start[field]) / 2**10) for field in start}


def memory() -> dict[str, int]:
    """Memory of this process and mapped pages of files, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if line.startswith("Rss"))
    sizes = {field: int(size.split()[0]) for field, size in fields.items()}
    return {"memory_mb": sizes["RssAnon"] + sizes["RssShmem"], "mapped_mb": sizes["RssFile"]}


if __name__ == "__main__":
    main()
