# SPDX-License-Identifier: BSD-3-Clause
"""Uploads, tables and errors of the page."""

import gradio as gr
import pytest

from blip_hf.app.components import figure_grid, open_upload, reduced, result_table, shows_errors
from tests.support.images import plain_image


def test_texts_in_tables_and_grids_are_escaped():
    table = result_table(["a<b"], [["<script>", 0.12345, 3, None]])
    assert "<th>a&lt;b</th>" in table
    assert "<td>&lt;script&gt;</td>" in table
    assert '<td class="number">0.1235</td><td class="number">3</td><td class="number"></td>' in table
    assert "<i>" not in figure_grid([("data:,", "<i>", "<i>")], "kept")


def test_errors_of_the_user_are_shown_and_others_are_raised():
    def fail(error):
        raise error

    with pytest.raises(gr.Error) as shown:
        shows_errors(fail)(ValueError("no <b>\n  words"))
    assert shown.value.message == "no &lt;b&gt; words"
    with pytest.raises(ZeroDivisionError):
        shows_errors(fail)(ZeroDivisionError())


def test_errors_of_uploads_name_the_file_without_its_folder(broken_upload):
    with pytest.raises(ValueError, match=r"^Cannot read the image broken\.png: it is empty or not an image"):
        open_upload(broken_upload)
    with pytest.raises(ValueError, match="No image is given"):
        open_upload(None)


def test_large_images_are_reduced_for_the_page():
    assert reduced(plain_image(size=(2048, 1024))).size == (512, 256)
    assert reduced(plain_image(size=(20, 10))).size == (20, 10)
