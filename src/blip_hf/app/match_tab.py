# SPDX-License-Identifier: BSD-3-Clause
"""Tab "Match": ITM probability and cosine of an image with several texts."""

from functools import partial

import gradio as gr

from ..evaluation.matching import Match, match_texts
from ..serving.models import LoadedModel
from .components import ONE_AT_A_TIME, image_input, missing, open_upload, result_table, shows_errors
from .models import PageContent


def match(matcher: LoadedModel, path: str | None, texts: str) -> list[Match]:
    """Scores of an upload and each line of `texts`, the best match first.

    Raises:
        ValueError: If the image cannot be read, or there is no text.
    """
    image = open_upload(path)
    lines = [line.strip() for line in texts.splitlines() if line.strip()]
    if not lines:
        raise ValueError("No text is given. Write one or several, each in its own line.")
    matches = match_texts(matcher.model, matcher.processor, [image], lines)
    return sorted(matches, key=lambda found: found.itm_probability or 0.0, reverse=True)


def add_match_tab(content: PageContent) -> None:
    """Builds the tab."""
    if content.matcher is None:
        missing("a retrieval model", "blip-hf app --matcher MODEL")
        return
    with gr.Row():
        with gr.Column():
            image = image_input()
            texts = gr.Textbox(label="Texts", lines=4, info="One in each line")
            button = gr.Button("Match", variant="primary")
        with gr.Column():
            table = gr.HTML(container=False)
    gr.on([button.click], shows_errors(partial(_run, content.matcher)), [image, texts], table, **ONE_AT_A_TIME)


def _run(matcher: LoadedModel, path: str | None, texts: str) -> str:
    rows = [[found.text, found.itm_probability, found.itc_similarity] for found in match(matcher, path, texts)]
    return result_table(["Text", "Match (ITM)", "Cosine (ITC)"], rows)


__all__ = ["add_match_tab", "match"]
