# SPDX-License-Identifier: BSD-3-Clause
"""Renders the page of a CapFilt report: charts and contact sheet in `templates/capfilt_report.html.jinja`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..pages import Chart, Palette, draw_chart, percent, render_page
from .report_examples import PLACES, Example
from .scores import SOURCES


if TYPE_CHECKING:
    from matplotlib.axes import Axes


_GROUP_NAMES = {
    "web": "web, before",
    "web_kept": "web, kept",
    "synthetic": "synthetic, before",
    "synthetic_kept": "synthetic, kept",
    "human": "human, before",
    "human_kept": "human, kept",
    "kept": "all kept",
}
_LENGTH_GROUPS = ("web", "synthetic_kept", "kept")
_PLACE_NAMES = {"near": "near the threshold", "far": "far from it"}
_REASONS = {
    "unreadable_image": "image cannot be read",
    "huge_image": "image is too large",
    "empty_text": "text without words",
    "huge_text": "text is too long",
    "truncated_tar": "tar ends too early",
    "bad_record": "record is not well-formed",
}
_SCORE_NAMES = {"itm": "ITM: matching probability", "itc": "ITC: cosine similarity"}
_MAX_BARS = 40
# Numbers of bins per bar, so that its edges are round numbers
_BAR_WIDTHS = (1, 2, 5, 10)


def render_report(report: Mapping[str, Any], examples: Sequence[tuple[Example, str]]) -> str:
    """Renders the output of `build_report`, and examples with the data URLs of their images, as HTML."""
    return render_page(
        "capfilt_report.html.jinja",
        report=report,
        summary=_summary(report),
        charts=_charts(report),
        sheet=_sheet(examples),
        settings=json.dumps(report["settings"], indent=2, ensure_ascii=False),
        group_names=_GROUP_NAMES,
        reasons=_REASONS,
    )


def _summary(report: Mapping[str, Any]) -> str:
    rule, source = report["rule"], report["settings"]["source"]
    name = {"itm": "matching probability (ITM)", "itc": "cosine similarity (ITC)"}[rule["by"]]
    if rule["keep_share"] is None:
        kept = f"a text is kept if its {name} is {rule['threshold']:g} or more"
    else:
        cutoffs = ", ".join(f"{c:.3f} for {s}" for s, c in report["cutoffs"].items() if c is not None)
        kept = f"the {percent(rule['keep_share'])} of each source with the highest {name} are kept, from {cutoffs}"
    best = ", and only the best one of each image" if rule["best_per_image"] else ""
    data = source if isinstance(source, str) else ", ".join(source)
    return f"Source: {data}. Rule for {' and '.join(rule['sources'])} texts: {kept}{best}."


def _sheet(examples: Sequence[tuple[Example, str]]) -> list[tuple[str, str, list[tuple[Example, str]]]]:
    """Groups examples by title and place."""
    sheet = []
    for source in SOURCES:
        for is_kept, verdict in ((True, "accepted"), (False, "rejected")):
            for place in PLACES:
                kind = (source, is_kept, place)
                shown = [pair for pair in examples if (pair[0].source, pair[0].is_kept, pair[0].place) == kind]
                if shown:
                    sheet.append((f"{source.capitalize()}, {verdict}", _PLACE_NAMES[place], shown))
    return sheet


def _charts(report: Mapping[str, Any]) -> list[Chart]:
    histograms, curve = report["histograms"], report["kept_share_by_threshold"]
    groups = {_GROUP_NAMES[name]: group for name, group in report["texts"].items() if name in _LENGTH_GROUPS}
    return [
        draw_chart(
            partial(_draw_histogram, histogram=histograms["itm"], score="itm"),
            "Matching probabilities by source, on a logarithmic scale.",
        ),
        draw_chart(
            partial(_draw_histogram, histogram=histograms["itc"], score="itc"),
            "Contrastive similarities by source, on a logarithmic scale.",
        ),
        draw_chart(
            partial(_draw_kept_shares, curve=curve, cutoffs=report["cutoffs"]),
            "Share of texts that each threshold keeps. Dashed: the threshold in use.",
        ),
        draw_chart(partial(_draw_lengths, texts=groups), "Lengths of the texts before and after filtering."),
    ]


def _draw_histogram(axes: "Axes", palette: Palette, histogram: Mapping[str, Any], score: str) -> None:
    edges, counts = _visible_bars(np.array(histogram["edges"]), histogram["counts"])
    for source, bars in counts.items():
        if bars.sum():
            shares = bars / bars.sum()
            axes.stairs(shares, edges, fill=True, color=_colour(palette, source), alpha=0.22)
            axes.stairs(shares, edges, color=_colour(palette, source), linewidth=1.8, label=source)
    axes.set_yscale("log")
    axes.set_ylim(top=1.5)
    axes.yaxis.set_major_formatter(_percent_label)
    axes.set_xlabel(_SCORE_NAMES[score])
    axes.set_ylabel("texts of the source")
    _legend(axes, palette)


def _draw_kept_shares(
    axes: "Axes", palette: Palette, curve: Mapping[str, Any], cutoffs: Mapping[str, float | None]
) -> None:
    thresholds = np.array(curve["thresholds"])
    for source, shares in curve["kept_shares"].items():
        axes.plot(thresholds, shares, color=_colour(palette, source), linewidth=2, label=source)
    for source, cutoff in cutoffs.items():
        if cutoff is not None:
            is_shared = len(set(cutoffs.values())) == 1
            colour = palette.ink if is_shared else _colour(palette, source)
            axes.axvline(cutoff, color=colour, linewidth=1.2, linestyle=(0, (4, 3)))
    inside = thresholds[_is_between_ends(curve["kept_shares"].values())]
    if curve["by"] == "itc" and inside.size:
        axes.set_xlim(inside[0] - 0.02, inside[-1] + 0.02)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(_percent_label)
    axes.set_xlabel(f"threshold on {curve['by'].upper()}")
    axes.set_ylabel("texts kept")
    _legend(axes, palette)


def _draw_lengths(axes: "Axes", palette: Palette, texts: Mapping[str, Mapping[str, Any]]) -> None:
    longest = 1
    for (name, statistics), colour in zip(texts.items(), palette.series, strict=False):
        shares = np.array(statistics["lengths"]) / max(1, statistics["num_texts"])
        axes.plot(shares, color=colour, linewidth=2, label=name)
        longest = max([longest, *np.flatnonzero(shares > 0).tolist()])
    axes.set_xlim(0, longest)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(_percent_label)
    axes.set_xlabel("words in the text")
    axes.set_ylabel("texts")
    _legend(axes, palette)


def _visible_bars(edges: np.ndarray, counts: Mapping[str, Sequence[int]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Crops a histogram to its filled bins, and merges bins to a legible number of bars."""
    total = np.sum([np.zeros(len(edges) - 1), *map(np.asarray, counts.values())], axis=0)
    filled = np.flatnonzero(total)
    first, last = (int(filled[0]), int(filled[-1]) + 1) if filled.size else (0, len(total))
    width = next(width for width in _BAR_WIDTHS if last - first <= width * _MAX_BARS)
    starts = np.arange(first // width * width, last, width)
    bars = {source: np.add.reduceat(bins[: starts[-1] + width], starts) for source, bins in counts.items()}
    return edges[[*starts, starts[-1] + width]], bars


def _is_between_ends(curves: Iterable[Sequence[float]]) -> np.ndarray:
    """Returns where a curve is neither 0 nor 1."""
    return np.any([(np.array(shares) > 0) & (np.array(shares) < 1) for shares in curves], axis=0)


def _colour(palette: Palette, source: str) -> str:
    return palette.series[SOURCES.index(source)]


def _percent_label(value: float, _: float) -> str:
    return f"{100 * value:.3g}%"


def _legend(axes: "Axes", palette: Palette) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(facecolor=palette.card, edgecolor="none", framealpha=0.8, labelcolor=palette.ink)


__all__ = ["render_report"]
