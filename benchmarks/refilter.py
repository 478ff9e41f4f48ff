# SPDX-License-Identifier: BSD-3-Clause
"""Time and memory of refiltering the scores of a large CapFilt run.

    python benchmarks/refilter.py --num_images 1000000

The run is synthetic: JSON lines of images, each with a web text and a synthetic caption, and random scores. Prints a line
for each rule, then JSON.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from blip_hf.capfilt.filters import Rule
from blip_hf.capfilt.refilter import refilter
from blip_hf.capfilt.scores import SCHEMA, RunFolder, write_scores
from blip_hf.data.readers import find_shards
from blip_hf.data.readers.samples import Shard


SHARD_SIZE = 10_000
RULES = {"threshold 0.7": Rule(threshold=0.7), "best 30% of each source": Rule(keep_share=0.3)}


def main() -> None:
    """Creates a run and applies the rules."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_images", type=int, default=100_000)
    num_images = parser.parse_args().num_images
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder), num_images)
        seconds = {}
        for name, rule in RULES.items():
            start = time.perf_counter()
            num_kept = refilter(run.root, rule, Path(folder, name.replace(" ", "_")), "json")
            seconds[name] = round(time.perf_counter() - start, 1)
            print(f"{name}: {seconds[name]} s for {2 * num_images:,} texts, kept {num_kept}", flush=True)
    mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10  # peak of the whole process
    print(json.dumps({"benchmark": "refilter", "num_images": num_images, "seconds": seconds, "peak_mib": mebibytes}))


def make_run(folder: Path, num_images: int) -> RunFolder:
    """Creates a finished run without models. Its images do not exist; rules do not read them."""
    source = folder / "web.jsonl"
    with source.open("w") as file:  # record by record, because peak memory is that of the whole process
        for i in range(num_images):
            print(json.dumps({"image": f"{i}.jpg", "image_id": i, "caption": f"a picture of thing {i}"}), file=file)
    run, generator = RunFolder(folder / "run"), np.random.default_rng(0)
    for shard in find_shards(str(source), shard_size=SHARD_SIZE):
        table = pa.Table.from_pylist(list(rows_of(shard, generator)), schema=SCHEMA)
        write_scores(table, run.scores(shard.name))
    models = {role: {"name": role, "fingerprint": "0"} for role in ("captioner", "filter")}
    settings = {"source": str(source), "image_root": None, "shard_size": SHARD_SIZE, "models": models}
    run.settings.write_text(json.dumps(settings))
    return run


def rows_of(shard: Shard, generator: np.random.Generator) -> Iterator[dict[str, object]]:
    """Two texts per image, with random scores."""
    for sample in shard.samples(checks_images=False):
        for source, text in (("web", sample.texts[0]), ("synthetic", "a man on a horse")):
            itm, itc = generator.random(2).tolist()
            yield {
                "sample_id": sample.sample_id,
                "image_id": sample.image_id,
                "image": sample.image,
                "text_index": 0,
                "text": text,
                "source": source,
                "itm": itm,
                "itc": itc,
                "log_prob": None if source == "web" else -1.0,
            }


if __name__ == "__main__":
    main()
