# SPDX-License-Identifier: BSD-3-Clause
"""A tiny retrieval model that notes what it encodes, and photos to index."""

from pathlib import Path

import pytest

from blip_hf import BlipForImageTextRetrieval
from blip_hf.search.encoder import RetrievalEncoder
from tests.support.images import noise_images
from tests.support.tiny_models import tiny_model_for
from tests.support.vocabularies import make_processor


class CountingEncoder(RetrievalEncoder):
    """Notes the number of images of each batch that the model encodes."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.encoded: list[int] = []

    def _forward(self, pixel_values):
        self.encoded.append(len(pixel_values))
        return super()._forward(pixel_values)


@pytest.fixture
def encoder() -> CountingEncoder:
    pytest.importorskip("faiss")
    processor = make_processor()
    model = tiny_model_for(BlipForImageTextRetrieval, processor, seed=3, initializer_range=0.5)
    return CountingEncoder(model, processor, "tiny", batch_size=4, num_workers=0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eleven different images, two of them in a subfolder."""
    folder = tmp_path / "photos"
    for number, image in enumerate(noise_images(11)):
        path = folder / ("trip" if number > 8 else "") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return folder
