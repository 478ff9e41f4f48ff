# SPDX-License-Identifier: BSD-3-Clause
"""Tab "Ask": answers to a question about an image, generated or chosen from a list."""

from functools import partial

import gradio as gr

from ..evaluation.answering import Answer, answer_questions
from ..evaluation.defaults import NUM_CANDIDATES
from ..serving.models import LoadedModel
from .components import ONE_AT_A_TIME, image_input, missing, open_upload, result_table, shows_errors
from .models import PageContent


def ask(vqa: LoadedModel, path: str | None, question: str, choices: str, num_answers: int) -> list[Answer]:
    """Answers to a question about an upload, best first. `choices` has one answer in a line, or is empty.

    Raises:
        ValueError: If the image cannot be read, or the question has no words.
    """
    image = open_upload(path)
    if not question.strip():
        raise ValueError("No question is given. Write one, such as: what is on the table?")
    answer_list = list(dict.fromkeys(line.strip() for line in choices.splitlines() if line.strip())) or None
    return answer_questions(
        vqa.model,
        vqa.processor,
        [image],
        question,
        answer_list=answer_list,
        num_candidates=NUM_CANDIDATES,
        top_k=int(num_answers),
        num_beams=max(3, int(num_answers)),
    )


def add_ask_tab(content: PageContent) -> None:
    """Builds the tab."""
    if content.vqa is None:
        missing("a VQA model", "blip-hf app --vqa MODEL")
        return
    with gr.Row():
        with gr.Column():
            image = image_input()
            question = gr.Textbox(label="Question", placeholder="what is on the table?")
            choices = gr.Textbox(label="Choices", lines=3, info="One answer in a line; empty to generate answers")
            num_answers = gr.Slider(1, 10, value=3, step=1, label="Answers")
            button = gr.Button("Ask", variant="primary")
        with gr.Column():
            table = gr.HTML(container=False)
    inputs = [image, question, choices, num_answers]
    gr.on([button.click, question.submit], shows_errors(partial(_run, content.vqa)), inputs, table, **ONE_AT_A_TIME)


def _run(vqa: LoadedModel, path: str | None, question: str, choices: str, num_answers: int) -> str:
    answers = ask(vqa, path, question, choices, num_answers)
    kind = "Probability among the choices" if choices.strip() else "Probability"
    return result_table(["Answer", kind], [[answer.text, answer.confidence] for answer in answers])


__all__ = ["add_ask_tab", "ask"]
