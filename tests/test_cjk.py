# SPDX-License-Identifier: BSD-3-Clause
"""Chinese and Japanese text without the spaces of BERT's tokenizers."""

import pytest

from blip_hf.cjk import join_cjk, split_cjk


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("一 只 狗", "一只狗"),
        ("一 只 dog 在 跑", "一只 dog 在跑"),
        ("两 只 dogs 和 3 只 cats", "两只 dogs 和 3 只 cats"),
        ("狗 \uff0c 猫 \u3002", "狗\uff0c猫\u3002"),
        ("dog \uff0c 猫 \uff01", "dog\uff0c猫\uff01"),
        ("\u201c 你 好 \u201d", "\u201c你好\u201d"),
        ("犬 が 走る", "犬が走る"),
        ("\U00020000 \U00020001", "\U00020000\U00020001"),
    ],
)
def test_spaces_between_characters_are_removed(text, expected):
    assert join_cjk(text) == expected
    assert join_cjk(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "a dog, two cats - and 3 birds.",
        "it \u2019 s \u201c a dog \u201d \u2026  ok",
        "caf\u00e9 \u043a\u043e\u0442 \uac15\uc544\uc9c0 \uac00",
        " leading and trailing ",
        "",
    ],
)
def test_other_text_is_unchanged(text):
    assert join_cjk(text) == text
    assert split_cjk(text) == text


def test_metrics_see_characters_as_words():
    assert split_cjk("一只狗\uff0ca dog").split() == ["一", "只", "狗", "a", "dog"]
