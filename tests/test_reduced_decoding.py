# SPDX-License-Identifier: BSD-3-Clause
"""JPEGs decoded at a fraction of their size, and images that are not copied."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from blip_hf import BlipImageProcessor
from blip_hf.image_utils import open_image, view_image
from tests.support.images import encode_image


def jpeg(width, height, mode="RGB", **options):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    return encode_image(image, "JPEG", quality=95, **options)


def pixels_of(source, **options):
    return BlipImageProcessor(size=32)(source, return_tensors="pt", **options).pixel_values


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (300, 40)])
def test_reduced_pixels_are_close_to_all_pixels(mode, size):
    source = jpeg(*size, mode=mode)
    difference = (pixels_of(source, reducing_gap=2.0) - pixels_of(source)).abs()
    assert difference.mean() < 2 / 255 / 0.26
    assert difference.max() < 16 / 255 / 0.26


def test_reduced_pixels_of_a_decoded_image_are_close():
    image = open_image(jpeg(640, 480))
    reduced, exact = pixels_of(image, reducing_gap=2.0), pixels_of(image)
    assert not torch.equal(reduced, exact)
    assert_close(reduced, exact, atol=16 / 255 / 0.26, rtol=0)


@pytest.mark.parametrize(
    ("min_size", "size"), [(None, (640, 480)), (480, (640, 480)), (240, (320, 240)), (100, (160, 120))]
)
def test_a_jpeg_is_decoded_no_smaller_than_asked(min_size, size):
    assert open_image(jpeg(640, 480), min_size=min_size).size == size


def test_exif_rotated_jpeg_is_decoded_small_and_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(jpeg(640, 480, exif=exif), min_size=240).size == (240, 320)


def test_an_option_of_the_processor_reaches_files(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg(640, 480))
    of_call = pixels_of(path, reducing_gap=2.0)
    image_processor = BlipImageProcessor(size=32, reducing_gap=2.0)
    assert torch.equal(image_processor(path, return_tensors="pt").pixel_values, of_call)
    image_processor.save_pretrained(tmp_path)
    assert BlipImageProcessor.from_pretrained(tmp_path).reducing_gap == 2.0
    assert not torch.equal(pixels_of(path), of_call)


def test_rgb_image_is_not_copied():
    image = Image.new("RGB", (4, 4), "red")
    assert view_image(image) is image
    assert open_image(image) is not image


def test_an_opened_jpeg_outlives_its_file(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg(64, 48))
    image = open_image(path)
    path.unlink()
    assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(image))), np.asarray(image))
