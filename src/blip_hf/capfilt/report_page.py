# SPDX-License-Identifier: BSD-3-Clause
"""The page of a report: its figures as tables and charts, and the contact sheet."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

from ..pages import percent, render_chart, render_page, render_table
from .report_examples import PLACES, Example
from .report_figures import draw_histogram, draw_kept_shares, draw_lengths
from .scores import SOURCES


_STYLE = """.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 14px; margin: 20px 0; }
.tile { background: var(--card); border: 1px solid var(--line); padding: 12px 16px; }
.tile b { display: block; font-size: 24px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile span { color: var(--quiet); font-size: 14px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr)); gap: 14px; }
.charts figcaption { color: var(--quiet); padding: 4px 4px 0; }
.columns { display: flex; flex-wrap: wrap; gap: 0 28px; }
h3 { font-size: 16px; margin: 28px 0 10px; }
h3 span { font-weight: 400; color: var(--quiet); }
.sheet { grid-template-columns: repeat(auto-fill, minmax(136px, 1fr)); }
.sheet figure { padding: 8px; }
.sheet img { aspect-ratio: 1; object-fit: cover; }
.sheet .scores { color: var(--quiet); font-size: 13px; font-variant-numeric: tabular-nums; }
pre { background: var(--card); border: 1px solid var(--line); padding: 12px 16px; overflow-x: auto; font-size: 13px; }
summary { cursor: pointer; }
"""

_TEXT_NAMES = {
    "web": "web, before",
    "web_kept": "web, kept",
    "synthetic": "synthetic, before",
    "synthetic_kept": "synthetic, kept",
    "human": "human, before",
    "human_kept": "human, kept",
    "kept": "all kept",
}
_LENGTH_LINES = ("web", "synthetic_kept", "kept")
_PLACE_NAMES = {"near": "near the threshold", "far": "far from it"}
_FAULT_NAMES = {
    "unreadable_image": "image cannot be read",
    "huge_image": "image is too large",
    "empty_text": "text without words",
    "huge_text": "text is too long",
    "truncated_tar": "tar ends too early",
    "bad_record": "record is not well-formed",
}


def render_report(report: Mapping[str, Any], examples: Sequence[tuple[Example, str]]) -> str:
    """Makes the page.

    Args:
        report (mapping):
            What [`~blip_hf.capfilt.report.build_report`] returns.
        examples (sequence of tuples):
            Texts of the contact sheet, each with its image for `src`.

    Returns:
        `str`: HTML with all charts and images in it.

    Raises:
        ImportError: If Matplotlib is not installed.
    """
    parts = [
        "<h1>CapFilt report</h1>",
        f'<p class="quiet">{escape(_summary(report))}</p>',
        _tiles(report),
        _kept_table(report),
        f'<div class="columns">{_faults(report["totals"]["faults"])}{_known_labels(report["filter"])}</div>',
        "<h2>Scores and lengths</h2>",
        _charts(report),
        "<h2>Texts before and after</h2>",
        _texts(report["texts"]),
        _word_tables(report["words"]),
        _contact_sheet(examples),
        _settings(report["settings"]),
    ]
    return render_page("CapFilt report", "\n".join(part for part in parts if part), style=_STYLE)


def _summary(report: Mapping[str, Any]) -> str:
    rule, source = report["rule"], report["settings"]["source"]
    name = {"itm": "matching probability (ITM)", "itc": "cosine similarity (ITC)"}[rule["by"]]
    if rule["keep_share"] is None:
        kept = f"a text is kept if its {name} is {rule['threshold']:g} or more"
    else:
        cutoffs = ", ".join(f"{c:.3f} for {s}" for s, c in report["cutoffs"].items() if c is not None)
        kept = f"of each source the {percent(rule['keep_share'])} with the highest {name} are kept, from {cutoffs}"
    best = ", and only the best one of each image" if rule["best_per_image"] else ""
    data = source if isinstance(source, str) else ", ".join(source)
    return f"Source: {data}. Rule for {' and '.join(rule['sources'])} texts: {kept}{best}."


def _tiles(report: Mapping[str, Any]) -> str:
    totals = report["totals"]
    tiles = [
        (_count(totals["num_images"]), "images"),
        (_count(totals["num_texts"]), "texts scored"),
        (_count(totals["num_kept"]), "texts kept"),
        *((percent(part["kept_share"]), f"of {source} kept") for source, part in totals["by_source"].items()),
    ]
    cells = "\n".join(f'<div class="tile"><b>{value}</b><span>{escape(name)}</span></div>' for value, name in tiles)
    return f'<div class="tiles">\n{cells}\n</div>'


def _kept_table(report: Mapping[str, Any]) -> str:
    totals = report["totals"]
    rows = [
        [
            source,
            _count(part["num_texts"]),
            _count(part["num_kept"]),
            percent(part["kept_share"]),
            _number(part["mean_itm"], 3),
            _number(part["mean_itc"], 3),
        ]
        for source, part in totals["by_source"].items()
    ]
    rows.append(["all", _count(totals["num_texts"]), _count(totals["num_kept"]), _share(totals["kept_share"]), "", ""])
    head = ["source", "texts", "kept", "kept share", "mean ITM", "mean ITC"]
    left = totals["num_images"] - totals["num_images_kept"]
    note = f"{_count(totals['num_images_kept'])} images keep one text or more, {_count(left)} keep none."
    return f'{render_table(head, rows, value_column=3)}\n<p class="quiet">{note}</p>'


def _faults(faults: Mapping[str, int]) -> str:
    if not faults:
        return "<div><h2>Left out</h2><p>Nothing: every record was read.</p></div>"
    rows = [[_FAULT_NAMES.get(reason, reason), _count(number)] for reason, number in faults.items()]
    rows.append(["all", _count(sum(faults.values()))])
    return f"<div><h2>Left out</h2>{render_table(['reason', 'times'], rows, value_column=1)}</div>"


def _known_labels(metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return ""
    names = {
        "precision": "precision: kept texts that are right",
        "recall": "recall: right texts that are kept",
        "noise_recall": "swapped texts that are dropped",
    }
    rows = [[name, _share(metrics[key])] for key, name in names.items()]
    rows.append(["ROC AUC of the score", _number(metrics["roc_auc"], 4)])
    num_swapped = metrics["num_texts"] - metrics["num_right"]
    note = (
        f"{_count(metrics['num_right'])} right and {_count(num_swapped)} swapped web texts, known from their source."
    )
    table = render_table(["", "filter"], rows, value_column=1)
    return f'<div><h2>The filter against known labels</h2>{table}<p class="quiet">{note}</p></div>'


def _charts(report: Mapping[str, Any]) -> str:
    histograms = report["histograms"]
    groups = {_TEXT_NAMES[name]: group for name, group in report["texts"].items() if name in _LENGTH_LINES}
    curve = report["kept_share_by_threshold"]
    charts = [
        (
            partial(draw_histogram, histogram=histograms["itm"], score="itm"),
            "Matching probabilities by source, on a logarithmic scale.",
        ),
        (
            partial(draw_histogram, histogram=histograms["itc"], score="itc"),
            "Contrastive similarities by source, on a logarithmic scale.",
        ),
        (
            partial(draw_kept_shares, curve=curve, cutoffs=report["cutoffs"]),
            "What each threshold would keep; dashed, the one in use.",
        ),
        (partial(draw_lengths, texts=groups), "Lengths of the texts before and after."),
    ]
    figures = [
        f"<figure>{render_chart(draw, alt=note)}<figcaption>{escape(note)}</figcaption></figure>"
        for draw, note in charts
    ]
    return "\n".join(['<div class="charts">', *figures, "</div>"])


def _texts(texts: Mapping[str, Any]) -> str:
    groups = {_TEXT_NAMES[name]: group for name, group in texts.items()}
    head = ["texts", "number", "words a text", "words", "distinct words", "distinct / words"]
    rows = [
        [
            name,
            _count(group["num_texts"]),
            _number(group["mean_length"], 2),
            _count(group["num_words"]),
            ("" if group["num_distinct_words_is_exact"] else "over ") + _count(group["num_distinct_words"]),
            _number(group["type_token_ratio"], 4),
        ]
        for name, group in groups.items()
    ]
    note = "The last column falls as texts get more; compare it between groups of similar size."
    return f'{render_table(head, rows)}\n<p class="quiet">{note}</p>'


def _word_tables(words: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    tables = []
    for key, title in (("added", "Words that gained most"), ("dropped", "Words that lost most")):
        rows = [[word["word"], f"{word['before']:.2f}", f"{word['after']:.2f}"] for word in words[key]]
        if rows:
            table = render_table(["word", "web, before", "all kept"], rows)
            tables.append(f"<div><h3>{title} <span>in 1,000 words</span></h3>{table}</div>")
    return "\n".join(['<div class="columns">', *tables, "</div>"]) if tables else ""


def _contact_sheet(examples: Sequence[tuple[Example, str]]) -> str:
    if not examples:
        return ""
    parts = [
        "<h2>Accepted and rejected texts</h2>",
        '<p class="quiet">Drawn by a hash of their ids, near the threshold and far from it; none was chosen by hand.</p>',
    ]
    for source in SOURCES:
        for is_kept, verdict in ((True, "accepted"), (False, "rejected")):
            for place in PLACES:
                kind = (source, is_kept, place)
                shown = [pair for pair in examples if (pair[0].source, pair[0].is_kept, pair[0].place) == kind]
                if shown:
                    title = f"{source.capitalize()}, {verdict} <span>{_PLACE_NAMES[place]}</span>"
                    images = "\n".join(_image(*pair) for pair in shown)
                    parts.append(f'<h3>{title}</h3>\n<div class="grid sheet">\n{images}\n</div>')
    return "\n".join(parts)


def _image(example: Example, url: str) -> str:
    verdict = "right" if example.is_kept else "wrong"
    text = escape(example.text)
    scores = f"ITM {_number(example.itm, 3)}<br>ITC {_number(example.itc, 3)}"
    return (
        f'<figure class="{verdict}"><img alt="" loading="lazy" src="{url}">'
        f'<figcaption>{text}<br><span class="scores">{scores}</span></figcaption></figure>'
    )


def _settings(settings: Mapping[str, Any]) -> str:
    content = escape(json.dumps(settings, indent=2, ensure_ascii=False))
    return f"<h2>Settings</h2>\n<details><summary>All of run.json</summary>\n<pre>{content}</pre>\n</details>"


def _count(number: int) -> str:
    return f"{number:,}"


def _share(value: float | None) -> str:
    return "—" if value is None else percent(value)


def _number(value: float | None, decimals: int) -> str:
    return "—" if value is None else f"{value:.{decimals}f}"


__all__ = ["render_report"]
