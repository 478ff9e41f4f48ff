# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf match`: which words are images and which are texts, and the scores as table, JSON and CSV."""

import csv
import io
import json

import pytest

from blip_hf import BlipForImageTextRetrieval, BlipProcessor, match_texts
from blip_hf.cli import main


def match(*arguments):
    return main(["match", *map(str, arguments), "--device", "cpu"])


@pytest.fixture
def paths(image_folder):
    return [image_folder / "a.PNG", image_folder / "b, c.png"]


def expected_rows(matcher_folder, paths, texts):
    model = BlipForImageTextRetrieval.from_pretrained(matcher_folder)
    matches = match_texts(model, BlipProcessor.from_pretrained(matcher_folder), paths, texts)
    return [
        {
            "image": str(paths[own.image_index]),
            "text": own.text,
            "itm_probability": pytest.approx(own.itm_probability, abs=1e-5),
            "itc_similarity": pytest.approx(own.itc_similarity, abs=1e-5),
        }
        for own in matches
    ]


def test_words_that_are_no_paths_are_texts(matcher_folder, paths, capsys):
    assert match(matcher_folder, *paths, "a b", "c", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == expected_rows(matcher_folder, paths, ["a b", "c"])


def test_texts_of_the_option_may_be_paths(matcher_folder, image_folder, paths, capsys):
    # `a.PNG` as a text; in a folder with an unreadable image.
    argv = ["--text", "a.PNG", "--text", str(image_folder), "b c", "--format", "csv"]
    assert match(matcher_folder, image_folder, *argv) == 0
    output, error = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(output)))
    assert [(row["image"], row["text"]) for row in rows] == [
        (str(path), text) for path in paths for text in ("a.PNG", str(image_folder), "b c")
    ]
    assert all(-1 <= float(row["itc_similarity"]) <= 1 for row in rows)
    assert "skipped 1 of 3 images (1 not_an_image)" in error


def test_a_table_has_names_and_four_digits(matcher_folder, paths, capsys):
    assert match(matcher_folder, paths[0], "a b", "c") == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["image", "text", "itm_probability", "itc_similarity"]
    expected = expected_rows(matcher_folder, paths[:1], ["a b", "c"])
    for row, own in zip(rows, expected, strict=True):
        assert [float(cell) for cell in row.split()[-2:]] == [
            pytest.approx(own[name].expected, abs=1e-4) for name in ("itm_probability", "itc_similarity")
        ]


def test_the_score_is_a_column(matcher_folder, paths, capsys):
    assert match(matcher_folder, paths[0], "a b", "--score", "posterior", "--format", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    model = BlipForImageTextRetrieval.from_pretrained(matcher_folder)
    processor = BlipProcessor.from_pretrained(matcher_folder)
    (expected,) = match_texts(model, processor, paths[:1], "a b", score="posterior")
    assert row["pair_score"] == pytest.approx(expected.pair_score, abs=1e-4)


def test_the_status_is_1_if_every_image_fails(matcher_folder, image_folder, capsys):
    assert match(matcher_folder, image_folder / "broken.jpg", "missing.png", "a b") == 1
    output, error = capsys.readouterr()
    assert output == ""
    assert "skipped 2 of 2 images (1 missing, 1 not_an_image)" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{path}"], "no text after"),
        (["a dog", "{path}"], "a dog does not exist. Name images or folders first"),
        (["{path}", "a dog", "{path}"], "is a path, but it follows the text 'a dog'"),
    ],
)
def test_words_that_could_be_both_are_refused(words, message, matcher_folder, paths, capsys):
    assert match(matcher_folder, *(word.format(path=paths[0]) for word in words)) == 2
    assert message in capsys.readouterr().err
