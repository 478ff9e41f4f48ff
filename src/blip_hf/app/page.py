# SPDX-License-Identifier: BSD-3-Clause
"""The page: its tabs, and its look."""

from pathlib import Path
from typing import Any

import gradio as gr

from .ask_tab import add_ask_tab
from .capfilt_tab import add_capfilt_tab
from .caption_tab import add_caption_tab
from .explain_tab import add_explain_tab
from .match_tab import add_match_tab
from .models import PageContent
from .search_tab import add_search_tab


def build_page(content: PageContent) -> gr.Blocks:
    """Builds the page. A tab without its model says how to load it; search appears with an index only."""
    with gr.Blocks(title="blip_hf", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown("# blip_hf", elem_classes="title")
        with gr.Tabs():
            for name, add_tab in (
                ("Caption", add_caption_tab),
                ("Ask", add_ask_tab),
                ("Match", add_match_tab),
                ("Explain", add_explain_tab),
            ):
                with gr.Tab(name):
                    add_tab(content)
            if content.index is not None:
                with gr.Tab("Search"):
                    add_search_tab(content.index)
            with gr.Tab("CapFilt"):
                add_capfilt_tab(content, page)
    return page


def page_style() -> dict[str, Any]:
    """Arguments of `launch` for the look: system fonts, so that no font is loaded."""
    theme = gr.themes.Default(
        primary_hue="blue",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return {"theme": theme, "css": Path(__file__).with_name("style.css").read_text(encoding="utf-8")}


__all__ = ["build_page", "page_style"]
