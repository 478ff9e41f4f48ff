# SPDX-License-Identifier: BSD-3-Clause
"""The page of the demo: scores, loss curves, and captions of held-out scenes."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..data.scenes import SceneRecord
from ..pages import Chart, Palette, draw_chart, percent, png_url, render_page
from .evaluate import Evaluation


if TYPE_CHECKING:
    from matplotlib.axes import Axes


LOSSES = ("loss_itc", "loss_itm", "loss_lm")
NOTES = (
    'Chance of captions: always "{blind_caption}", the most frequent caption of training. Word accuracy: words that are'
    " correct and in their place. R@1: the best match is correct; equal captions all are."
)
_LOSS_NAMES = {"loss_itc": "Contrastive (ITC)", "loss_itm": "Matching (ITM)", "loss_lm": "Captioning (LM)"}


def render_report(metrics: Mapping[str, Any], evaluation: Evaluation, scenes: Sequence[SceneRecord]) -> str:
    """Renders the content of `metrics.json` and the first scenes with their captions as HTML."""
    settings = metrics["settings"]
    summary = (
        f"{settings['steps']} steps of {settings['batch_size']} pairs on {settings['num_scenes']} drawn scenes, with the"
        f" contrastive, matching and captioning objectives; {metrics['minutes']:.1f} minutes, seed {settings['seed']}."
    )
    images = [
        {"url": png_url(scene["image"]), "reference": scene["caption"], "caption": caption}
        for scene, caption in zip(scenes, evaluation.captions, strict=False)
    ]
    return render_page(
        "demo.html.jinja",
        summary=summary,
        rows=[
            (score.label, percent(score.value), percent(score.chance), score.num_cases) for score in evaluation.scores
        ],
        notes=NOTES.format(blind_caption=evaluation.blind_caption),
        charts=_charts(metrics["losses"]),
        images=images,
    )


def _charts(losses: Sequence[Mapping[str, float]]) -> list[Chart]:
    return [
        draw_chart(partial(_draw_loss, losses=losses, name=name), title, size=(4.2, 2.9))
        for name, title in _LOSS_NAMES.items()
    ]


def _draw_loss(axes: "Axes", palette: Palette, losses: Sequence[Mapping[str, float]], name: str) -> None:
    colour = palette.series[LOSSES.index(name)]
    axes.plot([log["step"] for log in losses], [log[name] for log in losses], color=colour, linewidth=1.8)
    axes.set_xlabel("step")
    axes.set_ylim(bottom=0)


__all__ = ["LOSSES", "NOTES", "render_report"]
