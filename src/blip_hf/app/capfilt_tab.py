# SPDX-License-Identifier: BSD-3-Clause
"""Tab "CapFilt": browses a run and filters it again by another threshold. Only its button writes files."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import gradio as gr

from ..capfilt.filters import Rule, find_cutoffs, keep_mask
from ..capfilt.refilter import refilter
from ..capfilt.report_examples import Example, ExampleSheet, add_thumbnails
from ..capfilt.scores import SOURCES, RunFolder, read_scores
from ..capfilt.source_digests import open_unchanged
from ..data.readers.samples import Shard
from .components import ONE_AT_A_TIME, figure_grid, missing, result_table, shows_errors
from .models import PageContent


_SCORES: dict[str, Literal["itm", "itc"]] = {"ITM: probability of a match": "itm", "ITC: cosine": "itc"}
_LOWEST = {"itm": 0, "itc": -1}


@dataclass(frozen=True)
class CapFiltRun:
    """A finished run: its folder, its rule, and the shards of its source, if they have not changed."""

    folder: Path
    rule: Rule
    shards: Sequence[Shard]

    @classmethod
    def open(cls, folder: Path) -> "CapFiltRun":
        """Reads the settings of a run.

        Raises:
            ValueError: If the folder is not one of a run with scores.
        """
        run = RunFolder(folder)
        if not run.settings.is_file() or not run.score_files():
            raise ValueError(
                f"{folder} is not a CapFilt run with scores. Pass the output folder of `blip-hf capfilt run`."
            )
        settings = json.loads(run.settings.read_text(encoding="utf-8"))
        try:
            shards = open_unchanged(run, settings)
        except (OSError, ValueError):
            shards = []  # no images to show
        return cls(folder, Rule(**settings["rule"]), shards)

    def filter(self, rule: Rule) -> tuple[dict[str, tuple[int, int]], list[Example]]:
        """Numbers of texts and of kept texts by source, and examples. Score files are read one by one."""
        run = RunFolder(self.folder)
        cutoffs = find_cutoffs(rule, run.tables)
        files = run.score_files()
        sheet = ExampleSheet([path.stem for path in files], cutoffs, rule.by)
        num_texts: Counter[str] = Counter()
        num_kept: Counter[str] = Counter()
        for path in files:
            table = read_scores(path)
            is_kept = keep_mask(table, rule, cutoffs)
            sources = table["source"].to_numpy(zero_copy_only=False)
            num_texts.update(sources.tolist())
            num_kept.update(sources[is_kept].tolist())
            sheet.add(path.stem, table, is_kept)
        return {
            source: (num_texts[source], num_kept[source]) for source in SOURCES if num_texts[source]
        }, sheet.examples()


def make_rule(run: CapFiltRun, threshold: float, score: str, best_per_image: bool) -> Rule:
    """The rule of a run with another threshold, score and choice of the best text."""
    return replace(run.rule, threshold=threshold, keep_share=None, by=_SCORES[score], best_per_image=best_per_image)


def browse(run: CapFiltRun, threshold: float, score: str, best_per_image: bool) -> tuple[str, str]:
    """What a rule keeps: a table of numbers, and examples with images, both in HTML."""
    counts, examples = run.filter(make_rule(run, threshold, score, best_per_image))
    rows: list[list[str | float]] = [
        [source, total, kept, f"{kept / total:.1%}"] for source, (total, kept) in counts.items()
    ]
    total, kept = (sum(values) for values in zip(*counts.values(), strict=True))
    rows.append(["all", total, kept, f"{kept / total:.1%}"])
    return result_table(["Source", "Texts", "Kept", "Share"], rows), _example_sheet(
        add_thumbnails(examples, run.shards)
    )


def write_pairs(run: CapFiltRun, name: str, threshold: float, score: str, best_per_image: bool) -> str:
    """Writes the kept pairs to a new folder beside the run, and says how many there are.

    Raises:
        ValueError: If the name is not that of a new folder.
    """
    name = name.strip()
    if not name or Path(name).name != name or name in (".", "..") or "\\" in name:
        raise ValueError(f"{name!r} is not the name of a folder. Write a name without separators, such as kept-0.7.")
    folder = run.folder.resolve().parent / name
    if folder.exists():
        raise ValueError(f"{folder} exists. Write another name.")
    kept = refilter(run.folder, make_rule(run, threshold, score, best_per_image), folder)
    numbers = ", ".join(f"{number} {source}" for source, number in kept.items())
    return f"Wrote {numbers} pairs to {folder}"


def _example_sheet(shown: Sequence[tuple[Example, str]]) -> str:
    near = [(example, url) for example, url in shown if example.place == "near"]
    if not near:
        return '<p class="note">No images to show: the source of this run has changed or cannot be read.</p>'
    parts = []
    for source in SOURCES:
        for is_kept, verdict in ((True, "kept"), (False, "dropped")):
            figures = [_figure(*pair) for pair in near if (pair[0].source, pair[0].is_kept) == (source, is_kept)]
            if figures:
                parts.append(f"<h3>{source.capitalize()} texts near the threshold, {verdict}</h3>")
                parts.append(figure_grid(figures, verdict))
    return "".join(parts)


def _figure(example: Example, url: str) -> tuple[str, str, str]:
    return url, example.text, f"ITM {example.itm:.3f} · ITC {example.itc:.3f}"


def add_capfilt_tab(content: PageContent, page: gr.Blocks) -> None:
    """Builds the tab."""
    if content.capfilt_run is None:
        missing("a CapFilt run", "blip-hf app --capfilt FOLDER")
        return
    run = CapFiltRun.open(content.capfilt_run)
    score_names = {by: name for name, by in _SCORES.items()}
    gr.Markdown(f"Run: `{run.folder}`. Nothing is written until you press the button at the end.")
    with gr.Row():
        threshold = gr.Slider(_LOWEST[run.rule.by], 1, value=run.rule.threshold, step=0.01, label="Threshold")
        score = gr.Radio(list(_SCORES), value=score_names[run.rule.by], label="Score")
        best = gr.Checkbox(run.rule.best_per_image, label="Only the best text of each image")
    table = gr.HTML(container=False)
    sheet = gr.HTML(container=False)
    with gr.Row():
        name = gr.Textbox("kept", label="New folder beside the run")
        button = gr.Button("Write the kept pairs")
    written = gr.Markdown()
    score.change(
        lambda name: gr.Slider(minimum=_LOWEST[_SCORES[name]]), score, threshold, api_visibility="private", queue=False
    )
    rule = [threshold, score, best]
    shown = shows_errors(partial(browse, run))
    # `change` rather than `release`, which the keyboard does not trigger.
    triggers = [page.load, threshold.change, score.change, best.change]
    gr.on(triggers, shown, rule, [table, sheet], trigger_mode="always_last", **ONE_AT_A_TIME)
    button.click(shows_errors(partial(write_pairs, run)), [name, *rule], written, **ONE_AT_A_TIME)


__all__ = ["CapFiltRun", "add_capfilt_tab", "browse", "make_rule", "write_pairs"]
