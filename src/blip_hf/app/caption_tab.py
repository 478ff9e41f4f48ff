# SPDX-License-Identifier: BSD-3-Clause
"""Tab "Caption": one or several captions of an image, by beam search or sampling, with their scores."""

from functools import partial
from typing import Any

import gradio as gr

from ..caption_settings import CaptionSettings
from ..captioner import BlipCaptioner, Caption
from ..serving.models import LoadedModel
from .components import ONE_AT_A_TIME, image_input, missing, open_upload, result_table, shows_errors
from .models import PageContent


BEAMS, SAMPLING = "Beam search", "Sampling"


def write_captions(
    captioner: BlipCaptioner,
    matcher: LoadedModel | None,
    path: str | None,
    prompt: str,
    method: str,
    num_captions: int,
    num_beams: int,
    top_p: float,
    seed: int,
    max_length: int,
) -> list[Caption]:
    """Captions of an upload, the most probable per token first.

    Raises:
        ValueError: If the image cannot be read, or settings contradict each other.
    """
    image = open_upload(path)
    CaptionSettings.resolve(captioner.caption_settings, prompt=prompt, max_length=int(max_length))  # checks them
    settings: dict[str, Any]
    if method == SAMPLING:
        settings = {"do_sample": True, "top_p": top_p, "seed": int(seed)}
    else:
        if num_captions > num_beams:
            raise ValueError(
                f"{num_captions} captions need as many beams, got {num_beams}. Raise the number of beams."
            )
        settings = {"num_beams": int(num_beams)}
    own = BlipCaptioner(
        captioner.model,
        captioner.processor,
        matcher=None if matcher is None else matcher.model,
        matcher_processor=None if matcher is None else matcher.processor,
        prompt=prompt,
        max_length=int(max_length),
        **settings,
    )
    captions = own.caption(image, num_return_sequences=int(num_captions), return_scores=True)
    return sorted(captions, key=lambda caption: caption.mean_log_probability or 0.0, reverse=True)


def caption_table(captions: list[Caption], prompt: str) -> str:
    """Captions with their scores, in HTML."""
    has_matches = captions[0].itm_probability is not None
    head = ["Caption", "Log-probability per token", *(["Match (ITM)"] if has_matches else [])]
    rows = [
        [
            f"{prompt.strip()} {caption.text}".strip(),
            caption.mean_log_probability,
            *([caption.itm_probability] if has_matches else []),
        ]
        for caption in captions
    ]
    return result_table(head, rows)


def add_caption_tab(content: PageContent) -> None:
    """Builds the tab."""
    if content.captioner is None:
        missing("a captioning model", "blip-hf app CAPTIONER")
        return
    defaults = content.captioner.caption_settings
    with gr.Row():
        with gr.Column():
            image = image_input()
            prompt = gr.Textbox(content.captioner.prompt, label="Prompt", info="Start of each caption; may be empty")
            method = gr.Radio([BEAMS, SAMPLING], value=BEAMS, label="Method")
            num_captions = gr.Slider(1, 10, value=1, step=1, label="Captions")
            with gr.Accordion("More settings", open=False):
                num_beams = gr.Slider(1, 10, value=defaults.num_beams, step=1, label="Beams", info="Of beam search")
                top_p = gr.Slider(0.05, 1, value=defaults.top_p, step=0.05, label="Top p", info="Of sampling")
                seed = gr.Number(0, precision=0, label="Seed", info="Of sampling")
                max_length = gr.Slider(
                    5, 60, value=defaults.max_length, step=1, label="Maximum length", info="In tokens, with the prompt"
                )
            button = gr.Button("Caption", variant="primary")
        with gr.Column():
            table = gr.HTML(container=False)

    inputs = [image, prompt, method, num_captions, num_beams, top_p, seed, max_length]
    run = partial(_run, content.captioner, content.matcher)
    gr.on([button.click, prompt.submit], shows_errors(run), inputs, table, **ONE_AT_A_TIME)


def _run(captioner: BlipCaptioner, matcher: LoadedModel | None, path: str | None, prompt: str, *settings: Any) -> str:
    return caption_table(write_captions(captioner, matcher, path, prompt, *settings), prompt)


__all__ = ["BEAMS", "SAMPLING", "add_caption_tab", "caption_table", "write_captions"]
