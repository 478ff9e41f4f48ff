# SPDX-License-Identifier: BSD-3-Clause
"""The search of the page: what the index is asked, and what is shown."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from blip_hf.app.search_tab import search, show_hits


def test_a_text_an_image_or_both_are_searched(index, upload):
    assert search(index, " a b ", None, 2) == index.search("a b", k=2)
    assert search(index, "", upload, 3) == index.search(image=upload, k=3)
    assert search(index, "a b", upload, 1) == index.search("a b", image=upload, k=1)


def test_images_of_files_and_tars_are_shown_and_those_that_cannot_be_read_are_named(index):
    shown = show_hits(index, search(index, "a b", None, 5))
    assert shown.count("<img") == 3
    assert "b &amp; c.png<small>cosine " in shown
    assert "<figcaption>d<small>cosine " in shown
    assert "Cannot be read: broken.png" in shown


def test_an_index_is_searched_in_threads_of_the_server(index):
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(search, index, "a b", None, 2).result() == search(index, "a b", None, 2)


def test_nothing_to_search_for_is_an_error(index):
    with pytest.raises(ValueError, match="Nothing to search for"):
        search(index, " ", None, 5)
