# SPDX-License-Identifier: BSD-3-Clause
"""The search of the page: what the index is asked, and what is shown."""

import pytest

from blip_hf.app.search_tab import search, show_hits


def test_a_text_an_image_or_both_are_searched(index, upload):
    index.asked.clear()
    search(index, " a dog ", None, 2)
    search(index, "", upload, 3)
    search(index, "a dog", upload, 1)
    assert index.asked == [("a dog", None, 2), (None, (40, 30), 3), ("a dog", (40, 30), 1)]


def test_images_that_cannot_be_read_are_named(index):
    shown = show_hits(search(index, "a dog", None, 5))
    assert shown.count("<img") == 2
    assert "b &amp; c.png<small>cosine 0.500</small>" in shown
    assert "Cannot be read: broken.png" in shown


def test_nothing_to_search_for_is_an_error(index):
    with pytest.raises(ValueError, match="Nothing to search for"):
        search(index, " ", None, 5)
