# SPDX-License-Identifier: BSD-3-Clause
import pytest

from blip_hf.data.text import pre_caption, pre_question


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Dog.", "a dog"),
        ('a.b!c"d(e)f*g#h:i;j~k', "a b c d e f g h i j k"),
        (
            "it's a dog, a black-and-white one? yes / no @ $5 50%",
            "it's a dog, a black-and-white one? yes / no @ $5 50%",
        ),
        ("a  dog   \t runs", "a dog runs"),
        ("a\tdog\nruns\n", "a\tdog\nruns"),
        (" ...a dog... ", "a dog"),
        ("(!)", ""),
        ("", ""),
    ],
)
def test_pre_caption_follows_the_rule(text, expected):
    assert pre_caption(text) == expected


def test_pre_caption_keeps_thirty_words_by_default():
    assert pre_caption(" ".join(str(i) for i in range(40))) == " ".join(str(i) for i in range(30))


def test_pre_caption_counts_words_between_spaces():
    assert pre_caption("a, b-c d e", max_words=3) == "a, b-c d"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What's THIS?", "what's this?"),
        ('a.b!c"d(e)f*g#h:i;j~k', "abcdefghijk"),
        ("  two  spaces stay, but not at the end   ", "  two  spaces stay, but not at the end"),
    ],
)
def test_pre_question_deletes_the_marks(text, expected):
    assert pre_question(text) == expected


def test_pre_question_cuts_the_length():
    assert pre_question("one two three four", max_words=2) == "one two"
