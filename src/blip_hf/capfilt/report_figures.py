# SPDX-License-Identifier: BSD-3-Clause
"""The charts of a report, each drawn on given axes from the figures that are in its JSON."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..pages import Palette
from .scores import SOURCES


if TYPE_CHECKING:
    from matplotlib.axes import Axes


_SCORE_NAMES = {"itm": "ITM: probability of a match", "itc": "ITC: cosine of image and text"}
_MAX_BARS = 40
# How many bins of the JSON a bar may hold, so that its edges are round numbers.
_BAR_WIDTHS = (1, 2, 5, 10)


def draw_histogram(axes: "Axes", palette: Palette, histogram: Mapping[str, Any], score: str) -> None:
    """Shares of each source's texts by score, on a logarithmic scale: most texts are at one of the ends.

    Args:
        axes (`matplotlib.axes.Axes`):
            Where to draw.
        palette ([`~blip_hf.pages.Palette`]):
            In which colours.
        histogram (mapping):
            `edges`, and `counts` by source.
        score (`str`):
            `"itm"` or `"itc"`.
    """
    edges, counts = _visible_bars(np.array(histogram["edges"]), histogram["counts"])
    for source, bars in counts.items():
        if bars.sum():
            shares = bars / bars.sum()
            axes.stairs(shares, edges, fill=True, color=_colour(palette, source), alpha=0.22)
            axes.stairs(shares, edges, color=_colour(palette, source), linewidth=1.8, label=source)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_percent_label)
    axes.set_xlabel(_SCORE_NAMES[score])
    axes.set_ylabel("texts of the source")
    _legend(axes, palette)


def draw_kept_shares(
    axes: "Axes", palette: Palette, curve: Mapping[str, Any], cutoffs: Mapping[str, float | None]
) -> None:
    """Share of each source's texts that a threshold keeps, and the thresholds that were used.

    Args:
        axes (`matplotlib.axes.Axes`):
            Where to draw.
        palette ([`~blip_hf.pages.Palette`]):
            In which colours.
        curve (mapping):
            `by`, `thresholds`, and `kept_shares` by source.
        cutoffs (mapping of `str` to `float`):
            The threshold of each source, `None` where nothing is kept.
    """
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


def draw_lengths(axes: "Axes", palette: Palette, texts: Mapping[str, Mapping[str, Any]]) -> None:
    """Shares of texts by number of words, before filtering and after.

    Args:
        axes (`matplotlib.axes.Axes`):
            Where to draw.
        palette ([`~blip_hf.pages.Palette`]):
            In which colours.
        texts (mapping of `str` to mapping):
            Statistics with `num_texts` and `lengths` of each line's texts, by its name.
    """
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
    """The stretch of a histogram that holds anything, in no more bars than are legible."""
    total = np.sum([np.zeros(len(edges) - 1), *counts.values()], axis=0)
    filled = np.flatnonzero(total)
    first, last = (int(filled[0]), int(filled[-1]) + 1) if filled.size else (0, len(total))
    width = next(width for width in _BAR_WIDTHS if last - first <= width * _MAX_BARS)
    starts = np.arange(first // width * width, last, width)
    bars = {source: np.add.reduceat(bins[: starts[-1] + width], starts) for source, bins in counts.items()}
    return edges[[*starts, starts[-1] + width]], bars


def _is_between_ends(curves: Iterable[Sequence[float]]) -> np.ndarray:
    """Where a curve is neither all nor nothing."""
    return np.any([(np.array(shares) > 0) & (np.array(shares) < 1) for shares in curves], axis=0)


def _colour(palette: Palette, source: str) -> str:
    return palette.series[SOURCES.index(source)]


def _percent_label(value: float, _: int) -> str:
    return f"{100 * value:.3g}%"


def _legend(axes: "Axes", palette: Palette) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(facecolor=palette.card, edgecolor="none", framealpha=0.8, labelcolor=palette.ink)


__all__ = ["draw_histogram", "draw_kept_shares", "draw_lengths"]
