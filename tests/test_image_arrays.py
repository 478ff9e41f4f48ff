# SPDX-License-Identifier: BSD-3-Clause
"""Arrays and tensors as images: the range of their levels and the place of their channels."""

import numpy as np
import pytest
import torch

from blip_hf.image_arrays import array_to_image, scale_to_255, to_channels_last, white_level


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("levels", "white"),
    [
        (np.array([False, True]), 1),
        (np.array([0, 1], dtype=np.uint8), 255),
        (np.array([0, 200], dtype=np.uint16), 65535),
        (np.array([0, 255], dtype=np.int64), 255),
        (np.array([0, 256], dtype=np.int64), 65535),
        (np.array([0.0, 1.0]), 1),
        (np.array([0.5], dtype=np.float16), 1),
        (np.array([-0.06, 1.09], dtype=np.float32), 1),  # resampled
        (np.array([-12.0, 264.0], dtype=np.float32), 255),
        (np.array([0.0, 0.0]), 1),
    ],
)
def test_white_is_found_from_type_and_range(levels, white):
    assert white_level(levels) == white


@pytest.mark.parametrize(
    "levels",
    [
        np.array([-1.8, 2.1]),  # normalized
        np.array([-1.0, 1.0]),
        np.array([0.0, 400.0]),
        np.array([0.0, np.nan]),
        np.array([-1, 255]),
        np.array([0, 70_000]),
    ],
)
def test_other_ranges_raise(levels):
    with pytest.raises(ValueError, match=r"levels from .* expected 0 to"):
        white_level(levels)


@pytest.mark.parametrize(
    "levels",
    [
        RAMP / 255,
        (RAMP / 255).astype(np.float32),
        RAMP.astype(np.float32),
        RAMP.astype(np.uint16) * 257,
        RAMP.astype(np.int64),
        torch.from_numpy(RAMP) / 255,
        (torch.from_numpy(RAMP) / 255).requires_grad_(),
    ],
)
def test_every_type_gives_the_8_bit_image(levels):
    np.testing.assert_array_equal(np.asarray(array_to_image(levels)), RAMP)


def test_half_precision_is_read_up_to_its_rounding():
    for dtype in (torch.bfloat16, torch.float16):
        read = np.asarray(array_to_image((torch.from_numpy(RAMP) / 255).to(dtype)), dtype=int)
        assert abs(read - RAMP).max() <= 1


def test_overshooting_levels_are_clipped():
    image = array_to_image(np.array([[-0.05, 0.0, 1.0, 1.05]]))
    assert np.asarray(image).tolist() == [[0, 0, 255, 255]]


def test_scaling_keeps_fractions_and_8_bits():
    np.testing.assert_allclose(scale_to_255(np.array([0.1, 0.5], dtype=np.float32)), [25.5, 127.5], rtol=1e-6)
    assert scale_to_255(RAMP) is RAMP


@pytest.mark.parametrize("num_channels", [1, 3, 4])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_channels_are_found_on_either_side(num_channels, kind):
    levels = np.random.default_rng(0).integers(0, 256, (6, 5, num_channels), dtype=np.uint8)
    for layout in (levels, levels.transpose(2, 0, 1).copy()):
        np.testing.assert_array_equal(to_channels_last(kind(layout)), levels)
    assert to_channels_last(kind(levels[..., 0].copy())).shape == (6, 5, 1)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.zeros((1, 1, 3)), (1, 1, 3)),
        (np.zeros((1, 8, 3)), (1, 8, 3)),
        (np.zeros((3, 8, 1)), (8, 1, 3)),
        (np.zeros((3, 8, 3)), (3, 8, 3)),
        (torch.zeros(3, 8, 3), (8, 3, 3)),
        (np.zeros((4, 8, 3)), (4, 8, 3)),
        (torch.zeros(1, 8, 4), (8, 4, 1)),
    ],
)
def test_small_images_have_the_likely_channels(image, expected):
    assert to_channels_last(image).shape == expected


def test_a_given_layout_is_used():
    assert to_channels_last(np.zeros((3, 8, 3)), "channels_first").shape == (8, 3, 3)
    assert to_channels_last(torch.zeros(3, 8, 3), "channels_last").shape == (3, 8, 3)


@pytest.mark.parametrize("image", [np.zeros((5, 6, 2)), np.zeros(3), np.zeros((0, 4, 3)), np.array([["a"]])])
def test_other_arrays_raise_with_their_shape(image):
    with pytest.raises(ValueError, match=r"an array of shape \("):
        to_channels_last(image)
