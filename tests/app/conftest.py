# SPDX-License-Identifier: BSD-3-Clause
"""Tiny models, uploads and a CapFilt run for the page."""

import pytest

from blip_hf import BlipCaptioner, BlipForQuestionAnswering, BlipIndex
from blip_hf.app.models import PageContent
from blip_hf.search.building import update_index
from blip_hf.search.encoder import RetrievalEncoder
from blip_hf.search.engines import LocalEngine
from blip_hf.search.store import Store
from blip_hf.serving.models import LoadedModel
from tests.support.capfilt_runs import write_scene_run
from tests.support.files import write_tar
from tests.support.images import encode_image, noise_images
from tests.support.tiny_models import tiny_capfilt, tiny_model_for


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Two image files, an image in a tar, and an image that is damaged after it was indexed."""
    pytest.importorskip("faiss")
    folder, other = tmp_path_factory.mktemp("indexed"), tmp_path_factory.mktemp("other")
    first, second, third, broken = map(encode_image, noise_images(4))
    (folder / "a.png").write_bytes(first)
    (folder / "b & c.png").write_bytes(second)
    tar = write_tar(other / "web.tar", [("d.png", third)])
    (folder / "broken.png").write_bytes(broken)
    _, processor, matcher, _ = tiny_capfilt()
    encoder = RetrievalEncoder(matcher, processor, "tiny", num_workers=0)
    update_index(other / "index", LocalEngine(encoder), [str(folder), str(tar)])
    (folder / "broken.png").write_bytes(b"nothing")
    return BlipIndex(Store(other / "index"), encoder)


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
