# SPDX-License-Identifier: BSD-3-Clause
"""Growth of time and peak memory with images, captions, beams, batch and queue: figures and plots.

Each series changes one number. Prints the log-log slope of time between the last two points (1 is linear).
"""

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from blip_hf import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

from .environment import describe
from .harness import OURS, Options, Way, measure_seconds, parse_options, peak_memory, small_heap
from .pretraining_step import Steps
from .sizes import build, config_fields, random_captions, random_pixels


RESULTS = Path(__file__).parent / "results"
POINTS = {
    "base": {
        "images": (1, 2, 4, 8, 16),
        "captions": (16, 64, 256, 1024),
        "beams": (1, 2, 4, 8),
        "batch": (2, 4, 8, 16),
        "queue": (0, 7_200, 14_400, 28_800, 57_600),
    },
    "small": {
        "images": (1, 2, 4, 8),
        "captions": (16, 64, 256),
        "beams": (1, 2, 4, 8),
        "batch": (2, 4, 8),
        "queue": (0, 4_096, 16_384),
    },
    "tiny": {"images": (1, 2), "captions": (2, 4), "beams": (1, 2), "batch": (2, 4), "queue": (0, 16)},
}
TOKENS = {"base": 20, "small": 20, "tiny": 4}
CAPTION_LENGTH = 12
BATCH_SIZE, QUEUE_SIZE = 4, 4_096


@dataclass(frozen=True)
class Series:
    """One series of points."""

    name: str
    job: str
    make: Callable[[int], Way]


def main(argv: Sequence[str] | None = None, folder: Path = RESULTS) -> dict[str, Any]:
    """Measures all series, writes a plot, and prints each point and JSON."""
    options = parse_options(argv)
    transformers.logging.set_verbosity_error()
    measured = {}
    with small_heap():
        for series in all_series(options):
            points = [measure_point(series, number, options) for number in POINTS[options.size_name][series.name]]
            measured[series.name] = {"job": series.job, "points": points, "exponent": exponent(points)}
            for point in points:
                memory = point["peak_bytes"] / 2**20
                print(f"{series.name:>9} {point['n']:>6}  {point['seconds']:9.4f} s  {memory:9.1f} MiB")
    folder.mkdir(parents=True, exist_ok=True)
    plot(measured, folder / f"growth-{options.size_name}.png")
    result = {"job": "growth", "size": options.size_name, **describe(options.device), "series": measured}
    print(json.dumps(result))
    return result


def all_series(options: Options) -> Iterator[Series]:
    """Images and beams of captioning, captions of matching, batch and queue of a pre-training step."""
    size, device, tokens = options.size, options.device, TOKENS[options.size_name]
    captioner = build(BlipForConditionalGeneration, BlipConfig(**config_fields(size)), device)

    def write(num_images: int, num_beams: int) -> Way:
        pixels = random_pixels(num_images, size.image_size, device)
        limits = {"min_new_tokens": tokens, "max_new_tokens": tokens}
        return lambda: captioner.generate(pixels, num_beams=num_beams, do_sample=False, **limits)

    yield Series("images", "greedy captions", lambda number: write(number, 1))
    yield Series("beams", "captions of one image", lambda number: write(1, number))
    matcher = build(BlipForImageTextRetrieval, BlipConfig(**config_fields(size)), device)

    def match(num_captions: int) -> Way:
        pixels = random_pixels(1, size.image_size, device)
        captions = random_captions(num_captions, CAPTION_LENGTH, size, device)
        return torch.no_grad()(lambda: matcher(captions, pixels).itm_logits)

    yield Series("captions", "matching with one image", match)
    image_size = size.image_size * 7 // 12 // 16 * 16  # 224 if the size is 384
    yield Series(
        "batch",
        "pre-training step",
        lambda number: Steps(options, number, max(image_size, 32), QUEUE_SIZE, torch.float32).ours,
    )
    yield Series(
        "queue",
        f"pre-training step, batch {BATCH_SIZE}",
        lambda number: Steps(options, BATCH_SIZE, max(image_size, 32), number, torch.float32).ours,
    )


def measure_point(series: Series, number: int, options: Options) -> dict[str, float]:
    """Median time and peak memory of one point."""
    way = series.make(number)
    way()
    seconds = measure_seconds({OURS: way}, options.device, options.rounds)[OURS]
    return {
        "n": number,
        "seconds": round(statistics.median(seconds), 6),
        "peak_bytes": peak_memory(way, options.device),
    }


def exponent(points: Sequence[dict[str, float]]) -> float | None:
    """Log-log slope of time between the last two points; 1 is linear.

    Example:
        >>> exponent([{"n": 2, "seconds": 1.0}, {"n": 4, "seconds": 4.0}])
        2.0
    """
    low, high = points[-2:]
    if low["n"] == 0:
        return None
    return round(math.log(high["seconds"] / low["seconds"]) / math.log(high["n"] / low["n"]), 2)


def plot(measured: dict[str, Any], path: Path) -> None:
    """Plots time (top) and memory (bottom), one column per series."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(measured), figsize=(3 * len(measured), 5), squeeze=False)
    for column, (name, series) in enumerate(measured.items()):
        numbers = [point["n"] for point in series["points"]]
        rows = (("seconds", 1), ("peak_bytes", 2**20))
        for axis, (quantity, unit) in zip(axes[:, column], rows, strict=True):
            axis.plot(numbers, [point[quantity] / unit for point in series["points"]], marker="o")
            axis.set_xlabel(name)
            axis.set_ylim(bottom=0)
        axes[0, column].set_title(series["job"], fontsize=9)
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("peak memory, MiB")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
