# SPDX-License-Identifier: BSD-3-Clause
"""Computes the statistics of a CapFilt run and writes its report: `report.json` and `report.html`."""

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..evaluation.filtering import filter_metrics
from ..files import atomic_write, write_json
from .filters import Rule, find_cutoffs, keep_mask, rule_scores
from .report_examples import Example, ExampleSheet, add_thumbnails
from .report_labels import LabelReader, find_labels
from .scores import SOURCES, RunFolder, read_scores
from .source_digests import open_unchanged
from .statistics import ScoreStatistics, TextStatistics, word_changes


# Range of each score, and number of bins. The posterior has a histogram if it decides.
_RANGES = {"itm": (0.0, 1.0, 100), "itc": (-1.0, 1.0, 200), "posterior": (-50.0, 50.0, 200)}


def build_report(
    run_dir: str | os.PathLike[str], *, labels: str | os.PathLike[str] | Sequence[int] | None = None
) -> dict[str, Any]:
    """Computes the statistics of a run. Scores are read shard by shard.

    Args:
        run_dir (`str` or `Path`):
            Folder of the run.
        labels (`str`, `Path` or sequence of `int`, *optional*):
            Labels of the web texts, or a JSON list of them: 1 if a text matches its image and 0 if not, one per record in
            the order of the source. Drawn scenes need none.

    Returns:
        `dict[str, Any]`: the content of `report.json`:

        - `totals`: numbers of images, texts and kept texts, also `by_source`, and `skipped` records by reason;
        - `rule`, and its `cutoffs` by source, `None` if nothing is kept;
        - `histograms` of `itm`, `itc` and the score of the rule: `edges`, and `counts` by source;
        - `kept_share_by_threshold`: `kept_shares` by source at each of `thresholds`;
        - `texts`: lengths and vocabulary of `web`, `web_kept`, `synthetic`, `synthetic_kept` and all that is `kept`;
        - `words`: those `added` and `dropped` most between `web` and `kept`;
        - `filter`: [`~blip_hf.evaluation.filtering.filter_metrics`] on the web texts, `None` without labels;
        - `examples`: texts near the threshold and far from it, accepted and rejected;
        - `settings`: the content of `run.json`.

    Raises:
        ValueError: If the folder has no scores, or the labels do not match them.
    """
    run = RunFolder(run_dir)
    files = run.score_files()
    if not files:
        raise ValueError(
            f"{run_dir} holds no scores/*.parquet. Pass the folder of a CapFilt run with a finished shard."
        )
    settings = json.loads(run.settings.read_text(encoding="utf-8"))
    rule = Rule(**settings["rule"])
    cutoffs = find_cutoffs(rule, run.tables)
    label_reader = find_labels(labels, settings["source"], lambda: open_unchanged(run, settings))
    statistics = _RunStatistics(ExampleSheet([path.stem for path in files], cutoffs, rule), label_reader)
    for path in files:
        table = read_scores(path)
        statistics.add(path.stem, table, keep_mask(table, rule, cutoffs))
    return {
        "totals": {**statistics.totals(), "num_shards": len(files), "skipped": _count_skipped(run)},
        "rule": asdict(rule),
        "cutoffs": {source: cutoff if math.isfinite(cutoff) else None for source, cutoff in cutoffs.items()},
        **statistics.details(),
        "settings": settings,
    }


def write_report(
    run_dir: str | os.PathLike[str], *, labels: str | os.PathLike[str] | Sequence[int] | None = None
) -> Path:
    """Writes `report.json` and `report.html`, a self-contained page with charts and images.

    Images are read from the source of the run; those that cannot be read are not shown.

    Args:
        run_dir (`str` or `Path`):
            Folder of the run, which is also the output folder.
        labels (`str`, `Path` or sequence of `int`, *optional*):
            Labels of the web texts, see [`build_report`].

    Returns:
        `Path`: path of `report.html`.

    Raises:
        ValueError: If the folder has no scores, or the labels do not match them.
        ImportError: If Matplotlib is not installed; `report.json` is written nevertheless.
    """
    from .report_page import render_report

    report = build_report(run_dir, labels=labels)
    try:
        shards = open_unchanged(RunFolder(run_dir), report["settings"])
    except (OSError, ValueError):
        shards = []  # without the source there are no images to show, and of a changed one they are the wrong ones
    shown = add_thumbnails([Example(**example) for example in report["examples"]], shards)
    report["examples"] = [asdict(example) for example, _ in shown]
    write_json(report, Path(run_dir, "report.json"))
    path = Path(run_dir, "report.html")
    with atomic_write(path) as temporary:
        temporary.write_text(render_report(report, shown), encoding="utf-8")
    return path


class _RunStatistics:
    """Statistics of one pass over the shards."""

    def __init__(self, examples: ExampleSheet, labels: LabelReader | None) -> None:
        self.examples = examples
        self.rule = examples.rule
        self.names: list[str] = list(dict.fromkeys(["itm", "itc", self.rule.by]))
        self.labels = labels
        self.num_images = 0
        self.num_images_kept = 0
        self.num_texts: Counter[tuple[str, bool]] = Counter()
        self.scores = {(name, source): ScoreStatistics(*_RANGES[name]) for name in self.names for source in SOURCES}
        self.texts = {(source, is_kept): TextStatistics() for source in SOURCES for is_kept in (True, False)}
        self.judged: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, shard_name: str, table: pa.Table, is_kept: np.ndarray) -> None:
        """Adds the scores of a shard."""
        sample_ids, sources, texts = (
            table[name].to_numpy(zero_copy_only=False) for name in ("sample_id", "source", "text")
        )
        scores = {name: table[name].to_numpy(zero_copy_only=False) for name in ("itm", "itc")}
        scores[self.rule.by] = rule_scores(table, self.rule)
        self.num_images += len(set(sample_ids))
        self.num_images_kept += len(set(sample_ids[is_kept]))
        for source in SOURCES:
            is_from = sources == source
            for name, values in scores.items():
                self.scores[name, source].add(values[is_from])
            for decision in (True, False):
                chosen = is_from & (is_kept == decision)
                self.num_texts[source, decision] += int(chosen.sum())
                self.texts[source, decision].add(texts[chosen])
        self.examples.add(shard_name, table, is_kept)
        if self.labels is not None:
            is_web = sources == "web"
            labels = self.labels(shard_name, table.filter(pa.array(is_web)))
            self.judged.append((scores[self.rule.by][is_web], labels, is_kept[is_web]))

    def totals(self) -> dict[str, Any]:
        by_source = {}
        for source in self._sources():
            num_kept, num_dropped = self.num_texts[source, True], self.num_texts[source, False]
            by_source[source] = _shares(num_kept + num_dropped, num_kept) | {
                f"mean_{name}": self.scores[name, source].mean() for name in self.names
            }
        num_kept = sum(totals["num_kept"] for totals in by_source.values())
        return {
            "num_images": self.num_images,
            "num_images_kept": self.num_images_kept,
            **_shares(self.num_texts.total(), num_kept),
            "by_source": by_source,
        }

    def details(self) -> dict[str, Any]:
        """Returns histograms, curve, texts, words, filter metrics and examples."""
        by = self.rule.by
        sources = self._sources()
        return {
            "histograms": {
                name: {
                    "edges": _edges(name),
                    "counts": {source: self.scores[name, source].counts.tolist() for source in sources},
                }
                for name in self.names
            },
            "kept_share_by_threshold": {
                "by": by,
                "thresholds": _edges(by),
                "kept_shares": {source: self.scores[by, source].kept_shares() for source in sources},
            },
            **self._texts(),
            "filter": self._filter_metrics(),
            "examples": [asdict(example) for example in self.examples.examples()],
        }

    def _sources(self) -> list[str]:
        """Returns the sources that have texts."""
        return [source for source in SOURCES if self.num_texts[source, True] + self.num_texts[source, False]]

    def _texts(self) -> dict[str, Any]:
        all_kept = sum((self.texts[source, True] for source in SOURCES), TextStatistics())
        groups = {}
        for source in self._sources():
            groups[source] = self.texts[source, True] + self.texts[source, False]
            groups[f"{source}_kept"] = self.texts[source, True]
        words = word_changes(groups.get("web", TextStatistics()), all_kept)
        groups["kept"] = all_kept
        return {"texts": {name: group.to_dict() for name, group in groups.items()}, "words": words}

    def _filter_metrics(self) -> dict[str, Any] | None:
        if self.labels is None:
            return None
        scores, labels, is_kept = (np.concatenate(parts) for parts in zip(*self.judged, strict=True))
        has_score = ~np.isnan(scores)
        if not has_score.any():
            return None
        return filter_metrics(scores[has_score], labels[has_score], kept=is_kept[has_score])


def _shares(num_texts: int, num_kept: int) -> dict[str, Any]:
    return {"num_texts": num_texts, "num_kept": num_kept, "kept_share": num_kept / num_texts if num_texts else None}


def _edges(name: str) -> list[float]:
    low, high, num_bins = _RANGES[name]
    return np.linspace(low, high, num_bins + 1).round(6).tolist()


def _count_skipped(run: RunFolder) -> dict[str, int]:
    """Counts the skipped records by reason, the most frequent first."""
    reasons: Counter[str] = Counter()
    for path in run.skipped_files():
        reasons.update(item["reason"] for item in json.loads(path.read_text(encoding="utf-8")))
    return dict(reasons.most_common())


__all__ = ["build_report", "write_report"]
