# SPDX-License-Identifier: BSD-3-Clause
"""Answer ranking of VQA for encoded questions, compared with the procedure of salesforce/BLIP."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.testing import assert_close

from blip_hf import BlipConfig, BlipForQuestionAnswering

from . import original
from .harness import OURS, Case, Options, run
from .sizes import build, config_fields, pad_to, random_captions, random_pixels


# Questions, answers in the list, and candidates per question.
PROBLEMS = {"base": (8, 3128, 128), "small": (4, 500, 64), "tiny": (2, 12, 4)}
QUESTION_LENGTH = 12
ANSWER_LENGTHS = (3, 4, 6)
"""Answers of one, two and four tokens in turn, with [CLS] and [SEP]."""


def cases(options: Options) -> Iterator[Case]:
    """One case."""
    num_questions, num_answers, k = PROBLEMS[options.size_name]
    size, device = options.size, options.device
    config = BlipConfig(**config_fields(size))
    model = build(BlipForQuestionAnswering, config, device)
    questions = random_captions(num_questions, QUESTION_LENGTH, size, device)
    mask = torch.ones_like(questions)
    answers, answer_mask = answer_list(num_answers, options)
    pixels = random_pixels(num_questions, size.image_size, device)
    with torch.no_grad():
        states = model(questions, pixels, attention_mask=mask, decoder_input_ids=questions[:, :1]).question_embeds
    # Encoding of questions is equal on both sides, so it is not timed.
    model.get_question_memory = lambda *_: model.text_decoder.bert.build_image_memory(states, mask)

    @torch.no_grad()
    def ours() -> tuple[Tensor, Tensor]:
        ranked = model.rank_answers(pixels, questions, mask, answers, answer_mask, num_candidates=k)
        return ranked.candidates, ranked.scores

    @torch.no_grad()
    def theirs() -> tuple[Tensor, Tensor]:
        return original.rank_answers(model, states, mask, answers, answer_mask, k)

    yield Case(
        f"VQA ranking stage, {num_questions} questions, {k} candidates of {num_answers}",
        {OURS: ours, "original": theirs},
        targets={"original": 2},
        check=same_scores,
    )


def answer_list(count: int, options: Options) -> tuple[Tensor, Tensor]:
    """Answers from [DEC] with different first tokens, and their mask, each of shape `(count, longest)`."""
    size, longest = options.size, max(ANSWER_LENGTHS)
    rows, _ = pad_to(random_captions(count, longest, size, options.device), longest)
    rows[:, 0] = size.vocab_size - 2
    rows[:, 1] = torch.arange(103, 103 + count, device=rows.device)
    for start, length in enumerate(ANSWER_LENGTHS):
        rows[start :: len(ANSWER_LENGTHS), length - 1] = 102
        rows[start :: len(ANSWER_LENGTHS), length:] = 0
    return rows, (rows != 0).long()


def same_scores(results: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Asserts that sorted scores are close."""
    ours, theirs = (results[name][1].sort(dim=1).values for name in (OURS, "original"))
    assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


if __name__ == "__main__":
    run("vqa_ranking", cases)
