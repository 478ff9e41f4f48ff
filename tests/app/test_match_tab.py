# SPDX-License-Identifier: BSD-3-Clause
"""Matches of the page: equal to those of `match_texts`."""

import pytest

from blip_hf import match_texts
from blip_hf.app.match_tab import match


def test_each_line_is_a_text_the_best_first(content, upload):
    matcher = content.matcher
    found = match(matcher, upload, "a b\n\n  c d e \nf")
    expected = match_texts(matcher.model, matcher.processor, [upload], ["a b", "c d e", "f"])
    assert found == sorted(expected, key=lambda own: -own.itm_probability)


def test_missing_texts_are_an_error(content, upload):
    with pytest.raises(ValueError, match="No text is given"):
        match(content.matcher, upload, "\n ")
