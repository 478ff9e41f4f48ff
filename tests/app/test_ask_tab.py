# SPDX-License-Identifier: BSD-3-Clause
"""Answers of the page: equal to those of `answer_questions`."""

import pytest

from blip_hf import answer_questions
from blip_hf.app.ask_tab import ask


def test_answers_are_those_of_the_model(content, upload):
    vqa = content.vqa
    expected = answer_questions(vqa.model, vqa.processor, [upload], "a b?", top_k=3)
    assert ask(vqa, upload, "a b?", "", 3) == expected


def test_choices_are_lines(content, upload):
    vqa = content.vqa
    answers = ask(vqa, upload, "a b?", "c\n\n d e \nf\nc", 2)
    assert answers == answer_questions(
        vqa.model, vqa.processor, [upload], "a b?", answer_list=["c", "d e", "f"], top_k=2
    )


@pytest.mark.parametrize("question", ["", "  "])
def test_a_missing_question_is_an_error(content, upload, question):
    with pytest.raises(ValueError, match="No question is given"):
        ask(content.vqa, upload, question, "", 1)
