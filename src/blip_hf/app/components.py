# SPDX-License-Identifier: BSD-3-Clause
"""What several tabs share: uploads, tables of results, and errors that the page shows."""

from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..image_utils import open_image


# All events that run a model wait for each other.
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
# Pixels of the longer side of images that the page shows.
MAX_SIDE = 512


def image_input(label: str = "Image") -> gr.Image:
    """A field for an image, whose value is the path of the upload."""
    field = gr.Image(label=label, type="filepath", sources=["upload", "clipboard"], height=280, buttons=[])
    # Gradio opens uploads itself, and its errors have paths of the server.
    field.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    return field


def open_upload(path: str | None) -> Image.Image:
    """Opens an upload. Errors have the name of its file.

    Raises:
        ValueError: If there is no upload, or it cannot be read.
    """
    if path is None:
        raise ValueError("No image is given. Drop one into the field, or click it to choose a file.")
    return open_image(path, name=Path(path).name)


def reduced(image: Image.Image) -> Image.Image:
    """A copy of an image for the page, at most `MAX_SIDE` pixels wide and high."""
    small = image.copy()
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    return small


def result_table(head: Sequence[str], rows: Sequence[Sequence[str | float | None]]) -> str:
    """A table in HTML: texts are escaped, numbers have four digits after the point."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="results"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: str | float | None) -> str:
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    number = "" if value is None else str(value) if isinstance(value, int) else f"{value:.4f}"
    return f'<td class="number">{number}</td>'


def figure_grid(figures: Sequence[tuple[str, str, str]], kind: str = "") -> str:
    """Images in a grid, in HTML: data URL, text and a smaller note of each. `kind` is a class of the style sheet."""
    body = "".join(
        f'<figure><img alt="" src="{url}"><figcaption>{escape(text)}<small>{escape(note)}</small></figcaption></figure>'
        for url, text, note in figures
    )
    return f'<div class="grid {kind}">{body}</div>'


def shows_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Shows errors of the user in the page. Errors of the program have their traceback on stderr."""

    @wraps(function)
    def shown(*args: Any) -> Any:
        try:
            return function(*args)
        except (ValueError, OSError) as error:
            message = escape(" ".join(str(error).split()))
            raise gr.Error(message, title="This did not work", duration=None, print_exception=False) from error

    return shown


def missing(what: str, command: str) -> None:
    """Says in a tab how to load what it needs."""
    gr.Markdown(f"This page was started without {what}. To load one: `{command}`")


__all__ = [
    "ONE_AT_A_TIME",
    "figure_grid",
    "image_input",
    "missing",
    "open_upload",
    "reduced",
    "result_table",
    "shows_errors",
]
