# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf ask`: where the question stands, and the answers as table, JSON and CSV."""

import csv
import io
import json

import pytest

from blip_hf import BlipForQuestionAnswering, answer_questions
from blip_hf.cli import main
from tests.support.files import write_json
from tests.support.tiny_models import tiny_model_for
from tests.support.vocabularies import make_processor


def ask(*arguments):
    return main(["ask", *map(str, arguments), "--device", "cpu"])


@pytest.fixture(scope="module")
def model_and_processor():
    processor = make_processor()
    return tiny_model_for(BlipForQuestionAnswering, processor), processor


@pytest.fixture(scope="module")
def model_folder(model_and_processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vqa")
    for part in model_and_processor:
        part.save_pretrained(folder)
    return folder


def test_the_last_word_is_the_question(model_folder, model_and_processor, image_folder, capsys):
    assert ask(model_folder, image_folder, "a b c?", "--format", "json") == 0
    output, error = capsys.readouterr()
    paths = [image_folder / "a.PNG", image_folder / "b, c.png"]
    expected = answer_questions(*model_and_processor, paths, "a b c?")
    assert json.loads(output) == [
        {
            "image": str(paths[own.image_index]),
            "question": "a b c?",
            "answer": own.text,
            "confidence": pytest.approx(own.confidence, rel=1e-4),
        }
        for own in expected
    ]
    assert "broken.jpg" in error
    assert "skipped 1 of 3 images (1 not_an_image)" in error


def test_several_questions_and_ranked_answers(model_folder, image_folder, capsys):
    argv = ["--question", "a b", "--question", "c d", "--answers", "e", "f", "g h", "--top_k", "2", "--format", "csv"]
    assert ask(image_folder / "a.PNG", "--model", model_folder, *argv) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["question"] for row in rows] == ["a b", "a b", "c d", "c d"]
    assert {row["answer"] for row in rows} <= {"e", "f", "g h"}
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert 0 < float(second["confidence"]) <= float(first["confidence"]) < 1


def test_a_long_list_comes_from_a_file(model_folder, image_folder, tmp_path, capsys):
    answers = write_json(tmp_path / "answers.json", list("abcdefg"))
    assert ask(model_folder, image_folder / "a.PNG", "a b", "--answer_list", answers) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["image", "question", "answer", "confidence"]
    assert len(rows) == 5
    assert ask(model_folder, image_folder / "a.PNG", "a", "--answer_list", answers, "--answers", "a") == 2


def test_a_table_is_aligned_and_a_file_is_not_overwritten(model_folder, image_folder, tmp_path, capsys):
    output = tmp_path / "answers.txt"
    argv = [model_folder, image_folder, "a b", "--recursive", "--output", output]
    assert ask(*argv) == 0
    head, *rows = output.read_text().splitlines()
    assert len(rows) == 3
    assert {row.index("a b", len(str(image_folder))) for row in rows} == {head.index("question")}
    assert all(len(row) == len(head) for row in rows)
    assert ask(*argv) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["{folder}/a.PNG"], ["{folder}/a.PNG", "{folder}/b, c.png"], ["a.png", "missing.jpg"], ["what is it"]]
)
def test_a_missing_question_is_an_error(words, model_folder, image_folder, capsys):
    assert ask(model_folder, *(word.format(folder=image_folder) for word in words)) == 2
    assert "no question after" in capsys.readouterr().err


def test_a_model_of_another_task_is_an_error(captioner_folder, image_folder, capsys):
    assert ask(captioner_folder, image_folder, "a b") == 2
    assert "Pass a checkpoint of BlipForQuestionAnswering." in capsys.readouterr().err
