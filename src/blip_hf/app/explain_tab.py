# SPDX-License-Identifier: BSD-3-Clause
"""Tab "Explain": the patches that each word of a text looks at."""

from functools import partial

import gradio as gr
from PIL import Image

from ..explanation import explain
from ..pages import png_url
from ..serving.models import LoadedModel
from .components import ONE_AT_A_TIME, figure_grid, image_input, missing, open_upload, reduced, shows_errors
from .models import PageContent


def draw_words(
    models: dict[str, LoadedModel], path: str | None, text: str, role: str
) -> list[tuple[Image.Image, str]]:
    """An overlay for each word of a text, with the word.

    Raises:
        ValueError: If the image cannot be read, or the text has no words.
    """
    image = open_upload(path)
    if not text.strip():
        raise ValueError("No text is given. Write one that describes the image.")
    chosen = models[role]
    explanation = explain(chosen.model, chosen.processor, reduced(image), text)
    return [(explanation.overlay(index), word) for index, word in enumerate(explanation.words)]


def explained_models(content: PageContent) -> dict[str, LoadedModel]:
    """The models that can be explained, by what their gradients are of."""
    models = {}
    if content.matcher is not None:
        models["Match of image and text"] = content.matcher
    if content.captioner is not None:
        models["Each word of a caption"] = LoadedModel(content.captioner.model, content.captioner.processor)
    return models


def add_explain_tab(content: PageContent) -> None:
    """Builds the tab."""
    models = explained_models(content)
    if not models:
        missing("a retrieval or captioning model", "blip-hf app --matcher MODEL")
        return
    with gr.Row():
        with gr.Column():
            image = image_input()
            text = gr.Textbox(label="Text")
            role = gr.Radio(list(models), value=next(iter(models)), label="What to explain")
            button = gr.Button("Explain", variant="primary")
        with gr.Column():
            grid = gr.HTML(container=False)
    inputs = [image, text, role]
    gr.on([button.click, text.submit], shows_errors(partial(_run, models)), inputs, grid, **ONE_AT_A_TIME)


def _run(models: dict[str, LoadedModel], path: str | None, text: str, role: str) -> str:
    overlays = draw_words(models, path, text, role)
    note = "From blue to red: Grad-CAM of the cross-attention to each patch, scaled for each word."
    return f'{figure_grid([(png_url(overlay), word, "") for overlay, word in overlays])}<p class="note">{note}</p>'


__all__ = ["add_explain_tab", "draw_words", "explained_models"]
