# SPDX-License-Identifier: BSD-3-Clause
"""Tab "Search": the images of an index that are nearest to a text, an image, or both."""

from functools import partial
from pathlib import Path

import gradio as gr
from PIL import Image

from ..image_utils import UnreadableImageError, open_image
from .components import ONE_AT_A_TIME, image_input, open_upload, reduced, shows_errors
from .models import SearchIndex


def search(index: SearchIndex, text: str, path: str | None, k: int) -> list[tuple[Image.Image, str]]:
    """The nearest images with their names and scores. Images that cannot be read any more are left out.

    Raises:
        ValueError: If neither a text nor an image is given, or the image cannot be read.
    """
    text = text.strip()
    if not text and path is None:
        raise ValueError("Nothing to search for is given. Write a text, drop an image, or both.")
    hits = index.search(text=text or None, image=None if path is None else open_upload(path), k=int(k))
    found = []
    for hit in hits:
        try:
            found.append((reduced(open_image(hit.path)), f"{Path(hit.path).name} ({hit.score:.3f})"))
        except UnreadableImageError:
            continue
    return found


def add_search_tab(index: SearchIndex) -> None:
    """Builds the tab."""
    with gr.Row():
        with gr.Column(scale=1):
            text = gr.Textbox(label="Text", placeholder="a dog jumping over a log")
            image = image_input()
            k = gr.Slider(1, 50, value=12, step=1, label="Images")
            button = gr.Button("Search", variant="primary")
        with gr.Column(scale=2):
            gallery = gr.Gallery(label="Nearest images", columns=4, object_fit="contain", height="auto")
    inputs = [text, image, k]
    gr.on([button.click, text.submit], shows_errors(partial(search, index)), inputs, gallery, **ONE_AT_A_TIME)


__all__ = ["add_search_tab", "search"]
