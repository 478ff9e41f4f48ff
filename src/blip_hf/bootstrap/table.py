# SPDX-License-Identifier: BSD-3-Clause
"""The table of results: all models over all seeds, captioner and filter."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import atomic_write, write_json
from .config import VARIANTS, LoopSettings


if TYPE_CHECKING:
    from .loop import SeedResult

Summary = dict[str, dict[str, float | None]]

RESULTS, TABLE = "results.json", "table.md"

# Rows of the table of models: metric and label
_MODEL_ROWS = {
    "train_pairs": "training pairs",
    "share_right": "... correct, without human pairs",
    "words_right": "... correct words",
    "image_to_text_r@1": "image to text, R@1",
    "image_to_text_r@5": "R@5",
    "image_to_text_r@10": "R@10",
    "text_to_image_r@1": "text to image, R@1",
    "text_to_image_r@5": "R@5",
    "text_to_image_r@10": "R@10",
    "itc_image_to_text_r@1": "image to text, R@1 by cosine",
    "itc_text_to_image_r@1": "text to image, R@1 by cosine",
    "caption_exact_match": "caption, exact match",
    "caption_word_accuracy": "caption, word accuracy",
    "bleu_4": "caption, BLEU-4",
    "cider": "caption, CIDEr",
}
_SOURCE_ROWS = {
    "texts": "texts",
    "right": "correct before the filter",
    "kept": "kept",
    "precision": "correct among the kept",
    "recall": "kept of the correct",
    "noise_recall": "dropped of the wrong",
    "roc_auc": "ROC AUC",
}
# Metrics that are not shares
_PLAIN = frozenset({"train_pairs", "texts", "roc_auc", "cider", "bleu_4"})


def summarise(results: Sequence[Mapping[str, Any]]) -> Summary:
    """Computes mean and sample standard deviation (`spread`, `None` for one seed) of each metric that all seeds have.

    Example:
        >>> summarise([{"r@1": 0.25}, {"r@1": 0.75}])
        {'r@1': {'mean': 0.5, 'spread': 0.3535533905932738}}
    """
    summary: Summary = {}
    for name in results[0]:
        found = [metrics.get(name) for metrics in results]
        values = [value for value in found if isinstance(value, (int, float))]
        if len(values) == len(found):
            spread = statistics.stdev(values) if len(values) > 1 else None
            summary[name] = {"mean": math.fsum(values) / len(values), "spread": spread}
    return summary


def render(settings: LoopSettings, results: Sequence["SeedResult"]) -> str:
    """Renders the tables as Markdown."""
    models = {name: summarise([result.models[name] for result in results]) for name in settings.variants}
    tuned = {part: summarise([getattr(result, part) for result in results]) for part in ("captioner", "filter")}
    lines = [*_grid(["", *models, *tuned], _rows(_MODEL_ROWS, [*models.values(), *tuned.values()])), ""]
    parts = {"web": "capfilt", "synthetic": "capfilt", "held-out web": "check", "held-out synthetic": "check"}
    columns = {}
    for label, part in parts.items():
        source = label.rpartition(" ")[2]
        metrics = [_of_source(getattr(result, part), source) for result in results]
        if metrics[0]:
            columns[label] = summarise(metrics)
    lines += [*_grid(["CapFilt", *columns], _rows(_SOURCE_ROWS, list(columns.values()))), ""]
    human = "human pairs and " if settings.with_human else ""
    lines += [f"{name}: {human}{VARIANTS[name]}." for name in models]
    lines += ["captioner, filter: the noisy model, fine-tuned on the human pairs."]
    minutes = summarise([asdict(result) for result in results])["minutes"]["mean"]
    seeds = ", ".join(map(str, settings.seeds))
    spread = " Mean ± standard deviation." if len(results) > 1 else ""
    return "\n".join([*lines, f"{minutes:.1f} minutes a seed; seeds: {seeds}.{spread}"])


def write_results(settings: LoopSettings, results: Sequence["SeedResult"], folder: Path) -> str:
    """Writes `results.json` and `table.md`."""
    models = {name: summarise([result.models[name] for result in results]) for name in settings.variants}
    parts = {
        part: summarise([getattr(result, part) for result in results])
        for part in ("captioner", "filter", "capfilt", "check")
    }
    content = {"settings": settings.to_dict(), "seeds": list(map(asdict, results)), "models": models, **parts}
    write_json(content, folder / RESULTS)
    table = render(settings, results)
    with atomic_write(folder / TABLE) as beside:
        beside.write_text(table + "\n", encoding="utf-8")
    return table


def _of_source(metrics: Mapping[str, Any], source: str) -> dict[str, Any]:
    prefix = f"{source}_"
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def _rows(labels: Mapping[str, str], columns: Sequence[Summary]) -> list[list[str]]:
    return [
        [label, *(_cell(column.get(name), is_plain=name in _PLAIN) for column in columns)]
        for name, label in labels.items()
        if any(name in column for column in columns)
    ]


def _cell(figure: Mapping[str, float | None] | None, *, is_plain: bool) -> str:
    if figure is None:
        return ""
    mean, spread = figure["mean"], figure["spread"]
    assert mean is not None
    if is_plain:
        digits = 0 if mean == round(mean) or mean > 100 else 3
        text = f"{mean:.{digits}f}"
        return text if not spread else f"{text} ± {spread:.{digits}f}"
    return f"{100 * mean:.1f}%" if spread is None else f"{100 * mean:.1f}% ± {100 * spread:.1f}"


def _grid(head: list[str], rows: list[list[str]]) -> list[str]:
    """Renders a Markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        " | ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]
    rule = " | ".join("-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths))
    return [f"| {line} |" for line in (lines[0], rule, *lines[1:])]


__all__ = ["RESULTS", "TABLE", "render", "summarise", "write_results"]
