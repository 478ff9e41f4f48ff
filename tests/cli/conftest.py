# SPDX-License-Identifier: BSD-3-Clause
"""Images to caption."""

from pathlib import Path

import pytest

from tests.support.images import write_image


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images, a broken one, a text file, and an image in a subfolder. Do not write into it."""
    folder = tmp_path_factory.mktemp("images")
    # A comma, so that CSV has something to quote.
    for color, name in (("red", "b, c.png"), ("blue", "a.PNG"), ("green", "below/d.png")):
        write_image(folder / name, color)
    (folder / "broken.jpg").write_bytes(b"not an image")
    (folder / "notes.txt").write_text("not an image either")
    return folder
