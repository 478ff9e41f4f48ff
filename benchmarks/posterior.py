# SPDX-License-Identifier: BSD-3-Clause
"""R@1 of one retrieval model by cosines, by ITM, by the paper's score, and by the posterior at several temperatures.

    python -m benchmarks.posterior --model runs/demo/retriever
    python -m benchmarks.posterior --model runs/photos/retriever --data val.json --name photos

Without --data, on sets of new scenes. The ITM head scores each pair once; all scores come from its logits. Writes
`results/posterior_<name>.json` and a table `results/posterior_<name>.md`.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from blip_hf import BlipForImageTextRetrieval, BlipProcessor, evaluate_retrieval, load_pairs
from blip_hf.data.scenes import Scenes
from blip_hf.evaluation.retrieval import RetrievalResult
from blip_hf.files import write_json

from .environment import describe
from .growth import RESULTS


TEMPERATURES = (0.03, 0.05, 0.07, 0.1)
SCENES_PER_SET = 400
FIRST_SCENE = 100_000  # far from those of training
DIRECTIONS = ("image_to_text_r@1", "text_to_image_r@1")


def main(argv: Sequence[str] | None = None, folder: Path = RESULTS) -> dict[str, Any]:
    """Evaluates all sets, writes the results, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Retrieval checkpoint with its processor")
    parser.add_argument("--data", help="Pairs to evaluate on (default: sets of scenes)")
    parser.add_argument("--num_sets", type=int, default=6, help="Sets of scenes")
    parser.add_argument("--num_scenes", type=int, default=SCENES_PER_SET, help="Scenes of a set")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="Of the model")
    parser.add_argument("--k", type=int, default=64, help="Candidates that are re-ranked")
    parser.add_argument("--name", default="scenes", help="Name of the results")
    options = parser.parse_args(argv)
    model = BlipForImageTextRetrieval.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    processor = BlipProcessor.from_pretrained(options.model)
    sets = []
    for name, pairs in _sets(options):
        result = evaluate_retrieval(model, processor, pairs, k=options.k)
        sets.append({"set": name, "fitted_temperature": result.fit_temperature(), "scores": score_metrics(result)})
        print(json.dumps(sets[-1]), flush=True)
    report = {
        "job": "posterior",
        **describe(torch.device("cpu")),
        "model": "/".join(Path(options.model).parts[-2:]),
        "itm_temperature": model.config.itm_temperature,
        "dtype": options.dtype,
        "k": options.k,
        "sets": sets,
    }
    path = folder / f"posterior_{options.name}.json"
    write_json(report, path, indent=1)
    path.with_suffix(".md").write_text("\n".join(table_lines(report)) + "\n", encoding="utf-8")
    print("\n".join(table_lines(report)))
    return report


def _sets(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    if options.data is not None:
        yield Path(options.data).name, load_pairs(options.data, allow_outside=True)
        return
    for number in range(options.num_sets):
        start = FIRST_SCENE + number * options.num_scenes
        yield f"scenes {start}", Scenes(options.num_scenes, start=start)


def score_metrics(result: RetrievalResult) -> dict[str, dict[str, float]]:
    """The metrics of each score, by its label in the table."""
    fitted = result.fit_temperature()
    temperatures = sorted({*TEMPERATURES, result.temperature})
    return {
        "cosine": result.itc,
        "paper": result.rescored("paper"),
        "ITM alone": result.rescored("itm"),
        **{f"posterior, T = {value:g}": result.rescored("posterior", temperature=value) for value in temperatures},
        "posterior, T fitted on the set itself": result.rescored("posterior", temperature=fitted),
    }


def table_lines(report: Mapping[str, Any]) -> list[str]:
    """The table of a report: means over the sets, and in how many comparisons a score beats that of the paper."""
    sets = report["sets"]
    lines = ["| score | image to text R@1 | text to image R@1 | above the paper's |", "|---|---|---|---|"]
    for label in sets[0]["scores"]:
        means = [sum(own["scores"][label][name] for own in sets) / len(sets) for name in DIRECTIONS]
        differences = [
            own["scores"][label][name] - own["scores"]["paper"][name] for own in sets for name in DIRECTIONS
        ]
        wins = f"{sum(value > 0 for value in differences)} of {len(differences)}"
        cells = [label, *(f"{mean:.1%}" for mean in means), "" if label == "paper" else wins]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
