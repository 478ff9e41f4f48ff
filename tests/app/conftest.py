# SPDX-License-Identifier: BSD-3-Clause
"""Tiny models, uploads and a CapFilt run for the page."""

from dataclasses import dataclass

import pytest

from blip_hf import BlipCaptioner, BlipForQuestionAnswering
from blip_hf.app.models import PageContent
from blip_hf.serving.models import LoadedModel
from tests.support.capfilt_runs import write_scene_run
from tests.support.images import noise_images, write_image
from tests.support.tiny_models import tiny_capfilt, tiny_model_for


@dataclass
class Found:
    """A hit of [`LettersIndex`]."""

    image: str
    similarity: float


class LettersIndex:
    """Finds every image of a folder, and notes what it was asked."""

    def __init__(self, folder):
        self.folder = folder
        self.asked = []

    def search(self, text=None, *, image=None, k=10):
        self.asked.append((text, None if image is None else image.size, k))
        return [Found(str(path), 0.5) for path in sorted(self.folder.iterdir())[:k]]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Two images, and a file that is none."""
    folder = tmp_path_factory.mktemp("indexed")
    write_image(folder / "a.png", "red")
    write_image(folder / "b & c.png", "blue")
    (folder / "broken.png").write_bytes(b"nothing")
    return LettersIndex(folder)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return write_scene_run(tmp_path_factory.mktemp("capfilt") / "run")


@pytest.fixture(scope="module")
def content(index, run_folder):
    captioner, processor, matcher, _ = tiny_capfilt()
    return PageContent(
        captioner=BlipCaptioner(captioner, processor),
        matcher=LoadedModel(matcher, processor),
        vqa=LoadedModel(tiny_model_for(BlipForQuestionAnswering, processor), processor),
        index=index,
        capfilt_run=run_folder,
    )


@pytest.fixture(scope="module")
def upload(tmp_path_factory):
    path = tmp_path_factory.mktemp("uploads") / "noise.png"
    noise_images(1)[0].save(path)
    return str(path)


@pytest.fixture(scope="module")
def broken_upload(tmp_path_factory):
    path = tmp_path_factory.mktemp("uploads") / "broken.png"
    path.write_bytes(b"nothing")
    return str(path)
