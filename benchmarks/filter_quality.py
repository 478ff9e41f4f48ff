# SPDX-License-Identifier: BSD-3-Clause
"""ROC AUC of a filter by ITM, by the cosine, and by the posterior at several temperatures, on swapped and near-miss captions.

    python -m benchmarks.filter_quality --model runs/demo/retriever
    python -m benchmarks.filter_quality --model runs/photos/retriever --data web_noisy.json --labels labels.json --name photos

Without --data, on new scenes. A swapped caption is that of another image; --labels names those of --data. A near miss is the
right caption with one word exchanged, such as another colour. Each pair is scored once. Writes
`results/filter_<name>.json` and a table `results/filter_<name>.md`.
"""

import argparse
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blip_hf import BlipForImageTextRetrieval, BlipProcessor, load_pairs, match_texts
from blip_hf.data.readers.records import read_json
from blip_hf.data.scenes import Scenes
from blip_hf.evaluation.filtering import filter_metrics
from blip_hf.files import write_json
from blip_hf.pair_scores import posterior_scores

from .environment import describe
from .growth import RESULTS
from .posterior import FIRST_SCENE, TEMPERATURES


NOISE_RATE = 0.45
# One word of a caption is exchanged with another of its group.
WORD_GROUPS = (
    ("red", "green", "blue", "yellow", "orange", "purple", "black", "white", "brown", "pink", "gray", "grey"),
    ("small", "large", "little", "big"),
    ("left", "right"),
    ("top", "bottom"),
    ("circle", "square", "triangle", "star", "ring", "cross", "diamond"),
    ("man", "woman", "boy", "girl", "child"),
    ("men", "women", "boys", "girls", "children"),
    ("dog", "cat", "horse", "bird"),
    ("dogs", "cats", "horses", "birds"),
    ("one", "two", "three", "four", "five"),
    ("running", "sitting", "standing", "walking", "jumping", "sleeping"),
    ("grass", "snow", "sand", "water"),
)


def main(argv: Sequence[str] | None = None, folder: Path = RESULTS) -> dict[str, Any]:
    """Scores all pairs, writes the results, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Retrieval checkpoint with its processor: the filter")
    parser.add_argument("--data", help="Pairs, some of them swapped (default: scenes)")
    parser.add_argument("--labels", help="JSON list of 1 for each right pair of --data, and 0 for each swapped one")
    parser.add_argument("--num_pairs", type=int, default=2000, help="Pairs to score, the first ones")
    parser.add_argument("--name", default="scenes", help="Name of the results")
    options = parser.parse_args(argv)
    if (options.data is None) != (options.labels is None):
        parser.error("--data and --labels go together")
    images, captions, labels = _scenes(options) if options.data is None else _pairs(options)
    near_misses = [near_miss(caption, random.Random(number)) for number, caption in enumerate(captions)]
    model = BlipForImageTextRetrieval.from_pretrained(options.model, dtype=torch.float32)
    processor = BlipProcessor.from_pretrained(options.model)
    # A caption without such a word is scored twice, and the copy is left out.
    texts = [[caption, miss or caption] for caption, miss in zip(captions, near_misses, strict=True)]
    matches = match_texts(model, processor, images, texts, pairwise=True, score="itm")
    log_odds, cosines = (
        np.array([getattr(match, name) for match in matches]).reshape(-1, 2)
        for name in ("pair_score", "itc_similarity")
    )
    is_right = np.array(labels, dtype=bool)
    has_miss = is_right & np.array([miss is not None for miss in near_misses])
    report = {
        "job": "filter_quality",
        **describe(torch.device("cpu")),
        "model": "/".join(Path(options.model).parts[-2:]),
        "data": Path(options.data).name if options.data else "scenes",
        "itm_temperature": model.config.itm_temperature,
        "num_right": int(is_right.sum()),
        "num_swapped": int((~is_right).sum()),
        "num_near_misses": int(has_miss.sum()),
        "roc_auc": {
            label: {"swapped": _auc(scores[:, 0], is_right), "near_miss": _near_miss_auc(scores[has_miss])}
            for label, scores in _scores(log_odds, cosines, model.config.itm_temperature).items()
        },
    }
    path = folder / f"filter_{options.name}.json"
    write_json(report, path, indent=1)
    path.with_suffix(".md").write_text("\n".join(table_lines(report)) + "\n", encoding="utf-8")
    print("\n".join(table_lines(report)))
    return report


def _scenes(options: argparse.Namespace) -> tuple[list[Any], list[str], list[int]]:
    scenes = list(Scenes(options.num_pairs, start=FIRST_SCENE, noise_rate=NOISE_RATE))
    labels = [int(not scene["is_swapped"]) for scene in scenes]
    return [scene["image"] for scene in scenes], [scene["caption"] for scene in scenes], labels


def _pairs(options: argparse.Namespace) -> tuple[list[Any], list[str], list[int]]:
    pairs, labels = load_pairs(options.data, allow_outside=True), read_json(Path(options.labels))
    number = min(options.num_pairs, len(pairs))
    if len(pairs) != len(labels):
        raise SystemExit(f"{options.data} has {len(pairs)} pairs and {options.labels} {len(labels)} labels.")
    chosen = [pairs[i] for i in range(number)]
    return [pair["image"] for pair in chosen], [pair["caption"] for pair in chosen], labels[:number]


def near_miss(caption: str, rng: random.Random) -> str | None:
    """Exchanges one word with another one of its group; `None` if no word is in a group.

    Example:
        >>> near_miss("the left one of the stars", random.Random(0)) is None
        False
        >>> near_miss("a photo", random.Random(0)) is None
        True
    """
    words = caption.lower().split()
    places = [(place, group) for place, word in enumerate(words) for group in WORD_GROUPS if word in group]
    if not places:
        return None
    place, group = rng.choice(places)
    words[place] = rng.choice([word for word in group if word != words[place]])
    return " ".join(words)


def _scores(log_odds: np.ndarray, cosines: np.ndarray, own_temperature: float) -> dict[str, np.ndarray]:
    """Scores by their label in the table."""
    temperatures = sorted({*TEMPERATURES, own_temperature})
    posteriors = {f"posterior, T = {value:g}": posterior_scores(log_odds, cosines, value) for value in temperatures}
    return {"itm": log_odds, "itc": cosines, **posteriors}


def _auc(scores: np.ndarray, is_right: np.ndarray) -> float | None:
    return filter_metrics(scores, is_right.astype(int), kept=is_right)["roc_auc"]


def _near_miss_auc(scores: np.ndarray) -> float | None:
    """AUC of right captions, in column 0, against near misses, in column 1."""
    if not len(scores):
        return None
    labels = np.repeat([True, False], len(scores))
    return _auc(scores.T.reshape(-1), labels)


def table_lines(report: Mapping[str, Any]) -> list[str]:
    """The table of a report."""
    lines = ["| score | AUC, swapped captions | AUC, near misses |", "|---|---|---|"]
    for label, values in report["roc_auc"].items():
        cells = ("" if values[kind] is None else f"{values[kind]:.4f}" for kind in ("swapped", "near_miss"))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
