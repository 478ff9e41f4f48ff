# SPDX-License-Identifier: BSD-3-Clause
"""Tables of the run on photos in docs/flickr8k.md, from the metrics and logs of its commands.

    python -m benchmarks.photos runs/flickr8k

`retrieval_*.json`, `caption_*.json` and `vqa_*.json` of the folder are the outputs of `blip-hf evaluate`,
`*_predictions.json` its captions, and `*/trainer_state.json` the logs of the trainer. Retrieval after fine-tuning comes from
`results/posterior_photos.json`, the output of `python -m benchmarks.posterior`. Missing files are left out. Writes
`results/photos.json` and a table for each task, with the first run beside it.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from blip_hf.files import write_json

from .environment import describe
from .growth import RESULTS


FIRST_RUN = RESULTS / "photos_first_run.json"
# Head of a row and its folder.
KEY_ROWS = (("batch alone", "contrast_batch"), ("momentum and queue", "contrast_queue"))
# Head of a row, its file and the prefix of its metrics; the score of the command, the posterior, has none.
RETRIEVAL_ROWS = (
    ("during the last contrastive stage, cosines", "retrieval_contrast", "itc_"),
    ("after all stages, cosines", "retrieval_all", "itc_"),
    ("after all stages, best 32 re-ranked by the paper's score", "retrieval_all", "paper_"),
    ("after all stages, best 32 re-ranked by the posterior", "retrieval_all", ""),
    ("after fine-tuning, cosines", "retrieval_finetuned", "itc_"),
    ("after fine-tuning, best 32 re-ranked by the paper's score", "retrieval_finetuned", "paper_"),
    ("after fine-tuning, best 32 re-ranked by the posterior", "retrieval_finetuned", ""),
    ("the same, temperature fitted on `val.json` itself", "retrieval_finetuned", "fitted_"),
)
CAPTION_ROWS = (("after all stages", "caption_all"), ("after fine-tuning", "caption_finetuned"))
CAPTION_METRICS = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "meteor": "METEOR",
}
VQA_ROWS = (("image and question", "vqa_image"), ("grey image and question", "vqa_blind"))
# Outputs of `blip-hf evaluate`, without .json.
FILES = ("retrieval_all", *(name for _, name in (*CAPTION_ROWS, *VQA_ROWS)))
# Every 83rd photo of val.json: the number in its name, and what is on it in our words.
SAMPLES = {
    "2090545563": "a child lying on a skateboard, pushed by another",
    "2934628301": "a black dog in shallow water",
    "3440952969": "a skateboarder in the air over steps",
    "1476241331": "two small boys at a drinking fountain",
    "2775249812": "a girl in white among the jets of a fountain",
    "719837187": "a wet brown dog leaping at a ball",
    "2302516347": "two people at a machine in a wall",
    "3057618932": "a cyclist riding down stairs",
    "3508522093": "a boy sliding into leaves on a board",
    "2695962887": "a dog on an agility course",
    "3333017828": "a dog running along a beach",
    "3288174272": "people fetching water at a tap",
}


def main(argv: Sequence[str] | None = None, folder: Path = RESULTS) -> dict[str, Any]:
    """Gathers the metrics and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="Folder of the run")
    options = parser.parse_args(argv)
    metrics = read_metrics(options.runs)
    if not metrics:
        parser.error(f"{options.runs} has none of {', '.join(f'{name}.json' for name in FILES)}; see docs/flickr8k.md")
    curves = {path.parent.name: curve(path) for path in sorted(options.runs.glob("*/trainer_state.json"))}
    report = {
        "job": "photos",
        **describe(torch.device("cpu")),
        "metrics": last_contrast(curves) | metrics | read_posterior(folder / "posterior_photos.json"),
        "samples": {
            name: samples(path) for name in metrics if (path := options.runs / f"{name}_predictions.json").is_file()
        },
        "curves": curves,
        "first_run": json.loads(FIRST_RUN.read_text()),
    }
    write_json(report, folder / "photos.json", indent=1)
    for name, make in TABLES.items():
        _, _, *rows = lines = make(report)
        if rows:
            (folder / f"photos_{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
            print("\n".join([*lines, ""]))
    return report


def read_metrics(runs: Path) -> dict[str, dict[str, Any]]:
    """The outputs of `blip-hf evaluate`, by the name of their file."""
    return {name: json.loads(path.read_text()) for name in FILES if (path := runs / f"{name}.json").is_file()}


def read_posterior(path: Path) -> dict[str, dict[str, float]]:
    """Retrieval after fine-tuning from the output of `benchmarks.posterior`, under the names of `blip-hf evaluate retrieval`."""
    if not path.is_file():
        return {}
    report = json.loads(path.read_text())
    scores = report["sets"][0]["scores"]
    own = {
        "itc_": scores["cosine"],
        "paper_": scores["paper"],
        "": scores[f"posterior, T = {report['itm_temperature']:g}"],
        "fitted_": scores["posterior, T fitted on the set itself"],
    }
    return {
        "retrieval_finetuned": {
            f"{prefix}{name}": value for prefix, values in own.items() for name, value in values.items()
        }
    }


def samples(path: Path) -> dict[str, str]:
    """Captions of the sample photos, by the number in their names."""
    captions = {
        Path(record["image_id"]).stem.split("_")[0]: record["caption"] for record in json.loads(path.read_text())
    }
    return {number: captions[number] for number in SAMPLES}


def curve(path: Path) -> dict[str, dict[str, float]]:
    """Recall of the evaluations in a log of the trainer, by step."""
    history = json.loads(path.read_text())["log_history"]
    return {
        str(entry["step"]): {
            name.removeprefix("eval_"): value for name, value in entry.items() if "_r@" in name or "r_mean" in name
        }
        for entry in history
        if "eval_r_mean" in entry
    }


def last_contrast(curves: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """The last evaluation of the contrastive stages, under the names of `blip-hf evaluate retrieval`."""
    own = curves.get("contrast_queue")
    if not own:
        return {}
    return {"retrieval_contrast": {f"itc_{name}": value for name, value in own[max(own, key=int)].items()}}


def _runs(report: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The metrics of this run and of the first one, by file."""
    return report["metrics"], report["first_run"]["metrics"]


def retrieval_lines(report: Mapping[str, Any]) -> list[str]:
    """R@1, R@5 and R@10 of both directions, in this run and in the first one."""
    lines = [
        "| | caption to photo, R@1 / 5 / 10 | photo to caption, R@1 / 5 / 10 | first run: caption to photo | photo to caption |",
        "|---|---|---|---|---|",
    ]
    for head, name, prefix in RETRIEVAL_ROWS:
        cells = [
            _recalls(metrics.get(name, {}), f"{prefix}{direction}")
            for metrics in _runs(report)
            for direction in ("text_to_image", "image_to_text")
        ]
        if any(cells):
            lines.append(f"| {head} | {' | '.join(cells)} |")
    return lines


def _recalls(metrics: Mapping[str, float], name: str) -> str:
    values = [metrics[f"{name}_r@{k}"] for k in (1, 5, 10) if f"{name}_r@{k}" in metrics]
    return f"{' / '.join(f'{value:.1%}'.rstrip('%') for value in values)}%" if values else ""


def key_lines(report: Mapping[str, Any]) -> list[str]:
    """R@1 of both directions and the mean recall at each evaluation, by the keys of the contrast."""
    curves = {head: report["curves"].get(name, {}) for head, name in KEY_ROWS}
    steps = sorted({step for own in curves.values() for step in own}, key=int)
    lines = [f"| keys | {' | '.join(f'{step} steps' for step in steps)} |", "|---" * (len(steps) + 1) + "|"]
    for head, own in curves.items():
        cells = (_short_recalls(own[step]) if step in own else "not run" for step in steps)
        lines.append(f"| {head} | {' | '.join(cells)} |")
    return lines


def _short_recalls(metrics: Mapping[str, float]) -> str:
    names = ("text_to_image_r@1", "image_to_text_r@1", "r_mean")
    return " / ".join(f"{100 * metrics[name]:.1f}" for name in names) + "%"


def caption_lines(report: Mapping[str, Any]) -> list[str]:
    """Metrics of captions, times 100."""
    lines = [
        f"| `val.json`, 3 beams | {' | '.join(CAPTION_METRICS.values())} |",
        "|---" * (len(CAPTION_METRICS) + 1) + "|",
    ]
    for run, metrics in zip(("", "first run, "), _runs(report), strict=True):
        for head, name in CAPTION_ROWS:
            if own := metrics.get(name):
                cells = (f"{100 * own[metric]:.1f}" if metric in own else "" for metric in CAPTION_METRICS)
                lines.append(f"| {run}{head} | {' | '.join(cells)} |")
    return lines


def vqa_lines(report: Mapping[str, Any]) -> list[str]:
    """Accuracy on DAQUAR, with and without the image."""
    lines = ["| input | accuracy | first run |", "|---|---|---|"]
    for head, name in VQA_ROWS:
        cells = [f"{own['accuracy']:.1%}" if (own := metrics.get(name)) else "" for metrics in _runs(report)]
        if cells[0]:
            lines.append(f"| {head} | {' | '.join(cells)} |")
    return lines


def sample_lines(report: Mapping[str, Any]) -> list[str]:
    """Captions of the sample photos, of each file of predictions."""
    files = [name for _, name in CAPTION_ROWS if name in report["samples"]]
    heads = ["photo", "content", *(f"caption {head}" for head, name in CAPTION_ROWS if name in files)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for number, content in SAMPLES.items():
        captions = (report["samples"][name].get(number, "") for name in files)
        lines.append(f"| {' | '.join([number, content, *captions])} |")
    return lines


TABLES = {
    "keys": key_lines,
    "retrieval": retrieval_lines,
    "captions": caption_lines,
    "vqa": vqa_lines,
    "samples": sample_lines,
}


if __name__ == "__main__":
    main()
