# SPDX-License-Identifier: BSD-3-Clause
"""The demo's report: a curve of the three losses, and one page that needs nothing beside itself."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from matplotlib.figure import Figure
from PIL import Image

from .evaluate import Evaluation, Score
from .pretrain import LOSSES


_TITLES = {"loss_itc": "contrastive (ITC)", "loss_itm": "matching (ITM)", "loss_lm": "captioning (LM)"}
_COLOURS = {"loss_itc": "#2662d9", "loss_itm": "#c2540a", "loss_lm": "#1f8a4c"}

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>blip_hf demo</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1c2330; background: #fafafa; max-width: 960px; margin: 0 auto;
  padding: 32px 20px 64px; }}
h1 {{ font-size: 26px; margin: 0 0 4px; }}
h2 {{ font-size: 19px; margin: 40px 0 12px; }}
p {{ margin: 0 0 12px; max-width: 70ch; }}
.quiet {{ color: #5d6675; font-size: 14px; }}
table {{ border-collapse: collapse; background: #fff; border: 1px solid #e2e5ea; }}
th, td {{ padding: 8px 18px; text-align: right; border-bottom: 1px solid #e2e5ea; }}
th:first-child, td:first-child {{ text-align: left; }}
th {{ font-weight: 600; font-size: 14px; color: #5d6675; }}
td.value {{ font-weight: 600; }}
img.curve {{ width: 100%; max-width: 820px; border: 1px solid #e2e5ea; }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 14px; }}
figure {{ margin: 0; background: #fff; border: 1px solid #e2e5ea; border-top: 4px solid #1f8a4c; padding: 12px; }}
figure.wrong {{ border-top-color: #c62f34; }}
figure img {{ width: 100%; display: block; image-rendering: pixelated; margin-bottom: 8px; }}
figcaption {{ font-size: 14px; line-height: 1.4; }}
.verdict {{ font-weight: 600; color: #1f8a4c; }}
.wrong .verdict {{ color: #c62f34; }}
</style>
</head>
<body>
<h1>A small BLIP, pre-trained from nothing</h1>
<p class="quiet">{summary}</p>
<h2>Scenes it has never seen</h2>
{table}
<p class="quiet">{notes}</p>
<h2>The three losses</h2>
<img class="curve" alt="Curves of the three losses over the steps" src="{curve}">
<h2>What it writes</h2>
<p class="quiet">The first {num_pictures} held-out scenes; none was chosen.</p>
<div class="grid">
{pictures}
</div>
</body>
</html>
"""

_PICTURE = """<figure class="{verdict}">
<img alt="{true}" src="{source}">
<figcaption><span class="verdict">{verdict}</span><br>{lines}</figcaption>
</figure>"""


def percent(share: float) -> str:
    """A share as the table shows it.

    Args:
        share (`float`):
            In [0, 1].

    Returns:
        `str`: with one decimal.

    Example:
        >>> percent(0.0625)
        '6.2%'
    """
    return f"{100 * share:.1f}%"


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


def render_page(
    evaluation: Evaluation,
    true_captions: Sequence[str],
    pictures: Sequence[Image.Image],
    curve: bytes,
    summary: str,
) -> str:
    """Makes the page.

    Args:
        evaluation (`Evaluation`):
            Captions and scores.
        true_captions (`Sequence[str]`):
            Captions of the scenes.
        pictures (`Sequence[PIL.Image.Image]`):
            The first of the scenes, as many as are to be shown.
        curve (`bytes`):
            The losses, a PNG.
        summary (`str`):
            What was trained, in one sentence.

    Returns:
        `str`: HTML with all pictures in it.
    """
    triples = zip(pictures, true_captions, evaluation.captions, strict=False)
    return _PAGE.format(
        summary=escape(summary),
        table=_table(evaluation.scores),
        notes=escape(notes(evaluation)),
        curve=_data_url(curve),
        num_pictures=len(pictures),
        pictures="\n".join(_picture(*triple) for triple in triples),
    )


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
    rows = [
        f'<tr><td>{escape(score.label)}</td><td class="value">{percent(score.value)}</td>'
        f"<td>{percent(score.chance)}</td><td>{score.num_cases}</td></tr>"
        for score in scores
    ]
    head = "<tr><th></th><th>model</th><th>chance</th><th>cases</th></tr>"
    return "\n".join(["<table>", head, *rows, "</table>"])


def _picture(picture: Image.Image, true: str, written: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    is_right = written == true
    lines = escape(written) if is_right else f'{escape(written)}<br><span class="quiet">true: {escape(true)}</span>'
    verdict = "right" if is_right else "wrong"
    return _PICTURE.format(verdict=verdict, true=escape(true), source=_data_url(buffer.getvalue()), lines=lines)


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


__all__ = ["draw_losses", "notes", "percent", "render_page"]
