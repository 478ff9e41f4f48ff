# SPDX-License-Identifier: BSD-3-Clause
"""VQA accuracy computed by hand, and answers to a whole set by generation and by ranking."""

import json

import pytest

from blip_hf import BlipForQuestionAnswering
from blip_hf.data.vqa import BlipVqaCollator, VqaDataset
from blip_hf.evaluation.vqa import evaluate_vqa, normalize_answer, vqa_accuracy, write_vqa_results
from tests.support.images import plain_image
from tests.support.optimization import optimize
from tests.support.tiny_models import tiny_model_for
from tests.support.vocabularies import make_processor


WORDS = ("what", "colour", "is", "it", "red", "green", "blue", "dark")
COLOURS = {"red": "red", "lime": "green", "blue": "dark blue"}


# Normalisation


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Dog", "dog"),
        (" a  man and\nan apple ", "man and apple"),
        ("two", "2"),
        ("None", "0"),
        ("ten to twelve", "10 to twelve"),
        ("dont know", "don't know"),
        ("couldnt've, youre", "couldn't've you're"),
        ("its well", "its well"),  # words without an apostrophe
        ("t-shirt", "t shirt"),
        ("black - and white-ish", "black and whiteish"),  # one mark touches a space, so that both are deleted
        ("yes/no", "yes no"),
        ("what?", "what"),
        ("3.5 m.", "3.5 m"),
        ("$1,000-2,000", "$10002000"),
        ("room_divider", "room divider"),
        ("bottle, vase", "bottle vase"),
        ("the", ""),
    ],
)
def test_answers_are_normalised_for_comparison(answer, expected):
    assert normalize_answer(answer) == expected
    assert normalize_answer(expected) == expected


# Accuracy


@pytest.mark.parametrize(
    ("num_matches", "expected"),
    [
        (0, 0.0),
        (1, 0.3),  # one leaves 0 matches, nine leave 1: (1 * 0 + 9 * 1/3) / 10
        (2, 0.6),  # (2 * 1/3 + 8 * 2/3) / 10 = 6/10
        (3, 0.9),  # (3 * 2/3 + 7 * 1) / 10 = 9/10
        (4, 1.0),  # (4 * 1 + 6 * 1) / 10
        (10, 1.0),
    ],
)
def test_accuracy_is_the_mean_over_the_lists_without_one_annotator(num_matches, expected):
    answers = ["2"] * num_matches + ["three"] * (10 - num_matches)
    assert vqa_accuracy("Two", answers) == pytest.approx(expected)


def test_a_single_answer_gives_zero_or_one():
    assert vqa_accuracy("vase, bottle", ["vase, bottle"]) == 1.0
    assert vqa_accuracy("vase", ["vase, bottle"]) == 0.0
    with pytest.raises(ValueError, match="no answers to compare with"):
        vqa_accuracy("vase", [])


# Whole sets


@pytest.fixture(scope="module")
def processor():
    return make_processor(WORDS)


@pytest.fixture(scope="module")
def questions():
    return [
        {
            "image": plain_image(name),
            "question": "What colour is it?",
            "question_id": 10 + number,
            "answers": [answer],
            "weights": [1.0],
        }
        for number, (name, answer) in enumerate(COLOURS.items())
    ]


@pytest.fixture(scope="module")
def model(processor, questions):
    """A model that was trained on the three colours."""
    model = tiny_model_for(BlipForQuestionAnswering, processor)
    batch = BlipVqaCollator(processor)(list(VqaDataset(questions)))
    return optimize(model, lambda: model(**batch).loss, num_steps=60)


@pytest.mark.parametrize("answer_list", [None, ["blue", "dark blue", "green", "red"]])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_trained_model_gives_the_learnt_answers(model, processor, questions, answer_list, batch_size):
    model.train()
    result = evaluate_vqa(model, processor, questions, answer_list=answer_list, batch_size=batch_size)
    assert model.training
    assert result.predictions == {10: "red", 11: "green", 12: "dark blue"}
    assert (result.accuracy, result.num_scored, result.num_skipped) == (1.0, 3, 0)


def test_accuracy_covers_readable_questions_with_ground_truth(model, processor, questions, caplog):
    judged = {**questions[0], "answers": ["red"] * 2 + ["pink"] * 8, "weights": [0.1] * 10}
    unjudged = {**questions[1], "answers": [], "weights": []}
    lost = {**questions[2], "image": "lost.jpg"}
    result = evaluate_vqa(model, processor, [lost, judged, unjudged], answer_list=["red", "green"], batch_size=1)
    assert result.predictions == {10: "red", 11: "green"}
    assert result.accuracy == pytest.approx(0.6)  # as above
    assert (result.num_scored, result.num_skipped) == (1, 1)
    assert "lost.jpg" in caplog.text
    assert evaluate_vqa(model, processor, [unjudged], answer_list=["red"]).accuracy is None


def test_invalid_arguments_raise(model, processor, questions):
    with pytest.raises(ValueError, match="Two questions have the id 10"):
        evaluate_vqa(model, processor, [questions[0]] * 2)
    with pytest.raises(ValueError, match="answer_list is empty"):
        evaluate_vqa(model, processor, questions, answer_list=[])
    for answers in ("yes", {"yes": 3}, ["yes", 3]):
        with pytest.raises(ValueError, match="answer_list is not a list of strings"):
            evaluate_vqa(model, processor, questions, answer_list=answers)
    with pytest.raises(ValueError, match="num_candidates=0 is too small"):
        evaluate_vqa(model, processor, questions, answer_list=["yes"], num_candidates=0)
    with pytest.raises(ValueError, match=r"None of 1 questions can be used.*image_root"):
        evaluate_vqa(model, processor, [{**questions[0], "image": "lost.jpg"}])


def test_words_split_by_the_tokenizer_are_joined(processor, questions, monkeypatch, model):
    monkeypatch.setattr(processor, "post_process_captions", lambda _: ["don ' t know", "3 . 5", "a , b"])
    result = evaluate_vqa(model, processor, questions)
    assert list(result.predictions.values()) == ["don't know", "3.5", "a , b"]


def test_metrics_of_a_test_set_have_no_accuracy(model, processor, questions):
    unjudged = [{**question, "answers": [], "weights": []} for question in questions]
    assert evaluate_vqa(model, processor, unjudged).metrics() == {"num_answered": 3, "num_skipped": 0}
    assert evaluate_vqa(model, processor, questions).metrics() == {"accuracy": 1.0, "num_scored": 3, "num_skipped": 0}


def test_results_named_after_images_have_the_format_of_vizwiz(tmp_path):
    write_vqa_results({"VizWiz_test_00000020.jpg": "boat"}, tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    assert content == [{"image": "VizWiz_test_00000020.jpg", "answer": "boat"}]


def test_results_have_the_format_of_the_server(tmp_path):
    write_vqa_results({3: "yes", 1: "2"}, tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    assert content == [{"question_id": 3, "answer": "yes"}, {"question_id": 1, "answer": "2"}]
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
