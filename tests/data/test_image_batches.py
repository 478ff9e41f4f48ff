# SPDX-License-Identifier: BSD-3-Clause
"""Batches of images keep the order, and unreadable images keep their place."""

import pytest
import torch

from blip_hf.data.image_batches import image_batches
from blip_hf.image_utils import UnreadableImageError
from tests.support.images import noise_images
from tests.support.vocabularies import make_processor


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.mark.parametrize("num_workers", [0, 3])
def test_unreadable_images_have_an_error_in_place_of_pixels(num_workers, processor):
    images = noise_images(5)
    sources = [b"", images[0], images[1], "missing.png", b"broken", images[2]]
    options = {"batch_size": 2, "num_workers": num_workers, "first_index": 10}
    batches = list(image_batches(processor, sources, on_error="skip", **options))
    assert [(batch.indices, list(batch.errors)) for batch in batches] == [
        ([11], [10]),
        ([12], [13]),
        ([15], [14]),
    ]
    for batch, image in zip(batches, images, strict=False):
        assert torch.equal(batch.pixel_values, processor(images=image, return_tensors="pt")["pixel_values"])
    assert [error.kind for batch in batches for error in batch.errors.values()] == [
        "not_an_image",
        "missing",
        "not_an_image",
    ]
    with pytest.raises(UnreadableImageError):
        list(image_batches(processor, sources, **options))


def test_a_batch_without_readable_images_has_no_pixels(processor):
    (batch,) = image_batches(processor, ["missing.png"], batch_size=2, on_error="skip")
    assert (batch.indices, batch.images, batch.pixel_values.numel()) == ([], [], 0)


def test_an_unknown_reaction_to_errors_is_refused(processor):
    with pytest.raises(ValueError, match="on_error='ignore'"):
        next(image_batches(processor, [], batch_size=2, on_error="ignore"))
