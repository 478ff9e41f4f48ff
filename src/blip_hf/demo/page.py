# SPDX-License-Identifier: BSD-3-Clause
"""The demo's report: a curve of the three losses, and one page that needs nothing beside itself."""

import io
from collections.abc import Mapping, Sequence
from html import escape

from matplotlib.figure import Figure
from PIL import Image

from ..pages import percent, png_url, render_page, render_table
from .evaluate import Evaluation, Score
from .pretrain import LOSSES


_TITLES = {"loss_itc": "contrastive (ITC)", "loss_itm": "matching (ITM)", "loss_lm": "captioning (LM)"}
_COLOURS = {"loss_itc": "#2662d9", "loss_itm": "#c2540a", "loss_lm": "#1f8a4c"}

_STYLE = """img.curve { width: 100%; max-width: 820px; border: 1px solid var(--line); }
.grid img { image-rendering: pixelated; }
"""

_BODY = """<h1>A small BLIP, pre-trained from nothing</h1>
<p class="quiet">{summary}</p>
<h2>Scenes it has never seen</h2>
{table}
<p class="quiet">{notes}</p>
<h2>The three losses</h2>
<img class="curve" alt="Curves of the three losses over the steps" src="{curve}">
<h2>What it writes</h2>
<p class="quiet">The first {num_images} held-out scenes; none was chosen.</p>
<div class="grid">
{images}
</div>"""

_IMAGE = """<figure class="{verdict}">
<img alt="{true}" src="{source}">
<figcaption><span class="verdict">{verdict}</span><br>{lines}</figcaption>
</figure>"""


def draw_losses(history: Sequence[Mapping[str, float]]) -> bytes:
    """Draws the three losses, each on its own scale.

    Args:
        history (`Sequence[Mapping[str, float]]`):
            Logs with `step` and the losses.

    Returns:
        `bytes`: a PNG.
    """
    figure = Figure(figsize=(10, 3), layout="constrained")
    steps = [log["step"] for log in history]
    for axes, name in zip(figure.subplots(1, len(LOSSES)), LOSSES, strict=True):
        axes.plot(steps, [log[name] for log in history], color=_COLOURS[name], linewidth=1.8)
        axes.set_title(_TITLES[name], fontsize=11)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
        axes.grid(color="#e2e5ea")
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def render_report(
    evaluation: Evaluation,
    true_captions: Sequence[str],
    images: Sequence[Image.Image],
    curve: bytes,
    summary: str,
) -> str:
    """Makes the page.

    Args:
        evaluation (`Evaluation`):
            Captions and scores.
        true_captions (`Sequence[str]`):
            Captions of the scenes.
        images (`Sequence[PIL.Image.Image]`):
            The first of the scenes, as many as are to be shown.
        curve (`bytes`):
            The losses, a PNG.
        summary (`str`):
            What was trained, in one sentence.

    Returns:
        `str`: HTML with all images in it.
    """
    triples = zip(images, true_captions, evaluation.captions, strict=False)
    body = _BODY.format(
        summary=escape(summary),
        table=_table(evaluation.scores),
        notes=escape(notes(evaluation)),
        curve=png_url(curve),
        num_images=len(images),
        images="\n".join(_image(*triple) for triple in triples),
    )
    return render_page("blip_hf demo", body, style=_STYLE)


def notes(evaluation: Evaluation) -> str:
    """How the table is to be read.

    Args:
        evaluation (`Evaluation`):
            Whose table it is.

    Returns:
        `str`: a few sentences.
    """
    return (
        f'Chance of captioning: always "{evaluation.blind_caption}", the most frequent caption of training. Word accuracy:'
        " words that are right and in their place. R@1: the best match is a right one; among equal captions each is."
    )


def _table(scores: Sequence[Score]) -> str:
    rows = [[score.label, percent(score.value), percent(score.chance), str(score.num_cases)] for score in scores]
    return render_table(["", "model", "chance", "cases"], rows, value_column=1)


def _image(image: Image.Image, true: str, written: str) -> str:
    is_right = written == true
    lines = escape(written) if is_right else f'{escape(written)}<br><span class="quiet">true: {escape(true)}</span>'
    verdict = "right" if is_right else "wrong"
    return _IMAGE.format(verdict=verdict, true=escape(true), source=png_url(image), lines=lines)


__all__ = ["draw_losses", "notes", "render_report"]
