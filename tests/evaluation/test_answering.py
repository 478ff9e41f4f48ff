# SPDX-License-Identifier: BSD-3-Clause
"""Answers to questions about images: their texts, probabilities and order."""

import pytest
import torch

from blip_hf import BlipForQuestionAnswering, answer_questions
from blip_hf.data.vqa import BlipVqaCollator, VqaDataset
from blip_hf.image_utils import UnreadableImageError
from tests.support.images import noise_images, plain_image
from tests.support.optimization import optimize
from tests.support.tiny_models import tiny_model_for
from tests.support.vocabularies import make_processor


WORDS = ("what", "colour", "is", "it", "red", "green", "blue", "dark")
COLOURS = {"red": "red", "lime": "green", "blue": "dark blue"}
QUESTION = "What colour is it?"


@pytest.fixture(scope="module")
def processor():
    return make_processor(WORDS)


@pytest.fixture(scope="module")
def model(processor):
    """A model that was trained on the three colours."""
    questions = [
        {"image": plain_image(c), "question": QUESTION, "question_id": i, "answers": [a], "weights": [1.0]}
        for i, (c, a) in enumerate(COLOURS.items())
    ]
    model = tiny_model_for(BlipForQuestionAnswering, processor)
    batch = BlipVqaCollator(processor)(list(VqaDataset(questions)))
    return optimize(model, lambda: model(**batch).loss, num_steps=60)


@pytest.fixture(scope="module")
def images():
    return [plain_image(color) for color in COLOURS]


def log_probability(model, processor, image, answer):
    """The sum over tokens, from the loss of one answer without label smoothing."""
    inputs = processor(images=image, text=[QUESTION.lower()], role="contrast", return_tensors="pt")
    labels = processor(text=[answer], role="lm", return_tensors="pt")["labels"]
    smoothing, model.text_decoder.config.label_smoothing = model.text_decoder.config.label_smoothing, 0.0
    with torch.no_grad():
        loss = model(**inputs, labels=labels).answer_losses
    model.text_decoder.config.label_smoothing = smoothing
    return -loss.item()


@pytest.mark.parametrize("options", [{}, {"batch_size": 2, "num_workers": 2}, {"num_beams": 1}])
def test_a_generated_answer_has_its_probability(options, model, processor, images):
    answers = answer_questions(model, processor, images, QUESTION, **options)
    assert [answer.text for answer in answers] == list(COLOURS.values())
    for answer, image in zip(answers, images, strict=True):
        expected = log_probability(model, processor, image, answer.text)
        assert answer.confidence == pytest.approx(torch.tensor(expected).exp().item(), rel=1e-4)
        assert answer.question == QUESTION


def test_ranked_answers_share_the_probability(model, processor, images):
    answer_list = ["blue", "dark blue", "green", "red"]
    smoothing = model.text_decoder.config.label_smoothing
    assert smoothing > 0
    answers = answer_questions(model, processor, [images[2]], QUESTION, answer_list=answer_list, top_k=9)
    sums = torch.tensor([log_probability(model, processor, images[2], answer) for answer in answer_list])
    expected = dict(zip(answer_list, sums.softmax(dim=0).tolist(), strict=True))
    assert {answer.text: answer.confidence for answer in answers} == pytest.approx(expected, abs=1e-5)
    assert answers[0].text == "dark blue"
    assert [answer.text for answer in answers] == sorted(expected, key=expected.get, reverse=True)
    assert model.text_decoder.config.label_smoothing == smoothing
    (best,) = answer_questions(model, processor, [images[2]], QUESTION, answer_list=answer_list)
    assert best == answers[0]


def test_several_questions_and_answers_are_in_order(model, processor):
    images = noise_images(3)
    questions = ["what is it", "is it red", "colour"]
    together = answer_questions(model, processor, images, questions, top_k=2, batch_size=2)
    assert [(own.image_index, own.question) for own in together] == [
        (index, question) for index in range(3) for question in questions for _ in range(2)
    ]
    alone = [
        answer
        for image in images
        for question in questions
        for answer in answer_questions(model, processor, [image], question, top_k=2)
    ]
    assert [own.text for own in together] == [own.text for own in alone]
    assert [own.confidence for own in together] == pytest.approx([own.confidence for own in alone], rel=1e-4)


def test_an_unreadable_image_is_skipped_on_request(model, processor, images, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    with pytest.raises(UnreadableImageError):
        answer_questions(model, processor, [broken], QUESTION)
    failed, read = answer_questions(model, processor, [broken, images[0]], QUESTION, on_error="skip")
    assert (failed.text, failed.error_kind, read.image_index, read.text) == (None, "not_an_image", 1, "red")


@pytest.mark.parametrize(
    ("questions", "options", "message"),
    [
        ([], {}, "at least one question"),
        ("!", {}, "each with words"),
        ("what", {"top_k": 4}, "top_k=4 needs as many beams, got num_beams=3"),
        ("what", {"top_k": 0, "answer_list": ["red"]}, "top_k=0 is too small"),
        ("what", {"answer_list": []}, "answer_list is empty"),
    ],
)
def test_invalid_arguments_raise(questions, options, message, model, processor, images):
    with pytest.raises(ValueError, match=message):
        answer_questions(model, processor, images, questions, **options)


@pytest.mark.parametrize("options", [{}, {"answer_list": ["red", "green", "dark blue"], "top_k": 2}], ids=str)
def test_pairwise_asks_each_image_its_own_question(model, processor, images, options):
    questions = [QUESTION, "is it red?", "what is it"]
    found = answer_questions(model, processor, images, questions, pairwise=True, batch_size=2, **options)
    expected = [
        answer
        for image, question in zip(images, questions, strict=True)
        for answer in answer_questions(model, processor, [image], question, **options)
    ]
    num_each = options.get("top_k", 1)
    assert [answer.image_index for answer in found] == [index for index in range(3) for _ in range(num_each)]
    assert [(answer.question, answer.text) for answer in found] == [(each.question, each.text) for each in expected]
    assert [answer.confidence for answer in found] == pytest.approx([each.confidence for each in expected], abs=1e-5)


def test_pairwise_needs_a_question_for_each_image(model, processor, images):
    with pytest.raises(ValueError, match="Got 3 images and 2 questions"):
        answer_questions(model, processor, images, [QUESTION, QUESTION], pairwise=True)
