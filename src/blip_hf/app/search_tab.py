# SPDX-License-Identifier: BSD-3-Clause
"""Tab "Search": the images of an index that are nearest to a text, an image, or both."""

from functools import partial
from html import escape
from pathlib import Path

import gradio as gr

from ..image_utils import UnreadableImageError, open_image
from ..pages import thumbnail_url
from ..search.index import BlipIndex, Hit
from .components import ONE_AT_A_TIME, figure_grid, image_input, open_upload, shows_errors


def search(index: BlipIndex, text: str, path: str | None, k: int) -> list[Hit]:
    """The `k` images nearest to a text, an upload, or both, best first.

    Raises:
        ValueError: If neither is given, or the upload cannot be read.
    """
    text = text.strip()
    if not text and path is None:
        raise ValueError("Nothing to search for is given. Write a text, drop an image into the field, or both.")
    return list(index.search(text or None, image=None if path is None else open_upload(path), k=int(k)))


def show_hits(index: BlipIndex, hits: list[Hit]) -> str:
    """Images with their names and cosines, in HTML. Images that cannot be read are named below."""
    figures, unreadable = [], []
    sources = index.image_sources(hit.image for hit in hits)
    for hit in hits:
        name = Path(hit.image).name
        try:
            figures.append((thumbnail_url(open_image(sources[hit.image])), name, f"cosine {hit.similarity:.3f}"))
        except (KeyError, UnreadableImageError):
            unreadable.append(name)
    note = f'<p class="note">Cannot be read: {escape(", ".join(unreadable))}</p>' if unreadable else ""
    return figure_grid(figures) + note


def add_search_tab(index: BlipIndex) -> None:
    """Builds the tab."""
    with gr.Row():
        with gr.Column(scale=1):
            text = gr.Textbox(label="Text", placeholder="a dog jumping over a log")
            image = image_input()
            k = gr.Slider(1, 50, value=12, step=1, label="Images")
            button = gr.Button("Search", variant="primary")
        with gr.Column(scale=2):
            grid = gr.HTML(container=False)
    gr.on([button.click, text.submit], shows_errors(partial(_run, index)), [text, image, k], grid, **ONE_AT_A_TIME)


def _run(index: BlipIndex, text: str, path: str | None, k: int) -> str:
    return show_hits(index, search(index, text, path, k))


__all__ = ["add_search_tab", "search", "show_hits"]
