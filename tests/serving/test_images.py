# SPDX-License-Identifier: BSD-3-Clause
"""Images that are resized ahead of the model give the same pixels."""

import asyncio
from io import BytesIO

import pytest
import torch

from blip_hf.serving import ServerSettings
from blip_hf.serving.images import ImageReader, resize
from tests.support.images import encode_image, noise_images
from tests.support.serving import as_base64
from tests.support.vocabularies import make_processor


PHOTO = noise_images(1, (150, 70))[0]


@pytest.mark.parametrize("reducing_gap", [None, 2.0])
def test_resized_images_have_the_pixels_of_the_originals(reducing_gap):
    processor = make_processor()
    processor.image_processor.reducing_gap = reducing_gap
    small = resize(PHOTO, processor)
    assert small.size == (32, 32)
    expected = processor(images=PHOTO, return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(images=small, return_tensors="pt")["pixel_values"], expected)


def test_images_without_a_processor_keep_their_size():
    reader = ImageReader(ServerSettings())
    sources = [encode_image(PHOTO), *as_base64(PHOTO)]
    assert [image.size for image in asyncio.run(reader.read(sources, None))] == [(150, 70)] * 2
    reader.stop()


def test_images_are_upright():
    """As in `open_image`: the camera was turned."""
    content = BytesIO()
    exif = PHOTO.getexif()
    exif[0x0112] = 6
    PHOTO.save(content, "JPEG", exif=exif)
    reader = ImageReader(ServerSettings())
    (image,) = asyncio.run(reader.read([content.getvalue()], None))
    assert image.size == (70, 150)
    reader.stop()
