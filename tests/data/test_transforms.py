# SPDX-License-Identifier: BSD-3-Clause
"""The training transform and its operations on images and captions."""

import math
import pickle
import random
from statistics import mean

import pytest
from PIL import Image, ImageChops

from blip_hf.data.augment import (
    FILL_COLOR,
    RandomAugment,
    adjust_brightness,
    adjust_sharpness,
    rotate,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
)
from blip_hf.data.transforms import TrainTransform, mirror_caption, sample_crop_box


RED = (255, 0, 0)
SHORTEST_FALLBACK = {(1000, 10): (13, 10), (10, 1000): (10, 13), (2000, 1): (1, 1), (1, 2000): (1, 1)}


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Noise over a gradient, so that only the identity maps it to itself."""
    noise = Image.effect_noise((48, 40), 60)
    gradient = Image.linear_gradient("L").resize((48, 40))
    return Image.merge("RGB", (noise, gradient, ImageChops.invert(noise)))


def is_equal(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()


def dot(x: int, y: int) -> Image.Image:
    image = Image.new("RGB", (20, 16))
    image.putpixel((x, y), RED)
    return image


def mean_position(weights: list[int]) -> float:
    return sum(position * weight for position, weight in enumerate(weights)) / sum(weights)


@pytest.mark.parametrize("warp", [rotate, shear_x, shear_y, translate_x, translate_y])
def test_warps_by_zero_change_nothing(warp, photo):
    assert is_equal(warp(photo, 0.0), photo)
    assert not is_equal(warp(photo, 0.4), photo)


@pytest.mark.parametrize("adjust", [adjust_brightness, adjust_sharpness])
def test_enhancement_by_one_changes_nothing(adjust, photo):
    assert is_equal(adjust(photo, 1.0), photo)
    assert not is_equal(adjust(photo, 1.18), photo)


def test_brightness_scales_the_pixels():
    assert adjust_brightness(Image.new("RGB", (2, 2), (100, 50, 200)), 1.5).getpixel((0, 0)) == (150, 75, 255)


def test_translations_move_a_pixel_and_uncover_grey():
    right = translate_x(dot(3, 4), 5.0)
    down = translate_y(dot(3, 4), 5.0)
    assert right.getpixel((8, 4)) == RED
    assert down.getpixel((3, 9)) == RED
    assert right.getpixel((4, 0)) == down.getpixel((0, 4)) == FILL_COLOR == (128, 128, 128)
    assert right.getpixel((5, 0)) == down.getpixel((0, 5)) == (0, 0, 0)


def test_shears_move_far_pixels_more_than_near_ones():
    columns = Image.new("RGB", (20, 16))
    columns.paste(RED, (5, 0, 6, 16))
    sheared = shear_x(columns, 0.5)
    redness = ImageChops.subtract(sheared.getchannel("R"), sheared.getchannel("G"))  # the uncovered grey has none
    centres = [mean_position([redness.getpixel((x, y)) for x in range(20)]) for y in (0, 8, 15)]
    # Row y is y + 0.5 below the top edge, and moves by half of that.
    assert centres == pytest.approx([5.25, 9.25, 12.75], abs=0.02)
    rows = columns.transpose(Image.Transpose.TRANSPOSE)
    assert is_equal(shear_y(rows, 0.5), sheared.transpose(Image.Transpose.TRANSPOSE))


def test_rotation_by_a_right_angle_is_counter_clockwise():
    image = Image.new("RGB", (16, 16))
    image.putpixel((12, 8), RED)
    assert rotate(image, 90.0).getpixel((8, 3)) == RED


def test_level_five_warps_by_the_amounts_of_the_reference(photo):
    solid = Image.new("RGB", (40, 40), (10, 20, 30))
    seen = {RandomAugment(1)(solid, random.Random(seed)).tobytes() for seed in range(300)}
    shear, turn = 0.15, 15.0
    expected = [
        solid,
        *(warp(solid, sign * shear) for warp in (shear_x, shear_y) for sign in (-1, 1)),
        *(warp(solid, sign * 5.0) for warp in (translate_x, translate_y) for sign in (-1, 1)),
        *(rotate(solid, sign * turn) for sign in (-1, 1)),
    ]
    assert seen == {image.tobytes() for image in expected}


def test_brightness_changes_at_other_levels_than_five():
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    seen = {RandomAugment(1, level=10)(grey, random.Random(seed)).getpixel((4, 4)) for seed in range(200)}
    assert (190, 190, 190) in seen  # 0.1 + 1.8 = 1.9


def test_zero_operations_do_not_change_the_image(photo):
    assert is_equal(RandomAugment(0)(photo, random.Random(0)), photo)


def test_half_of_the_single_draws_are_applied(photo):
    # Of ten operations, identity, brightness and sharpness change nothing at level 5.
    changed = mean(not is_equal(RandomAugment(1)(photo, random.Random(seed)), photo) for seed in range(1000))
    assert changed == pytest.approx(0.5 * 7 / 10, abs=0.05)


@pytest.mark.parametrize("size", [1, 24, 224])
def test_results_are_rgb_of_the_given_size(size, photo):
    transform = TrainTransform(size)
    for seed in range(20):
        image, _ = transform(photo, "a dog", random.Random(seed))
        assert (image.size, image.mode) == ((size, size), "RGB")


def test_results_depend_only_on_the_generator(photo):
    transform = TrainTransform(32)
    other = pickle.loads(pickle.dumps(transform))
    first, caption = transform(photo, "left", random.Random(7))
    again, caption_again = other(photo, "left", random.Random(7))
    assert is_equal(first, again)
    assert caption == caption_again
    assert not is_equal(first, transform(photo, "left", random.Random(8))[0])


def test_the_source_is_not_modified(photo):
    before = photo.tobytes()
    for seed in range(20):
        TrainTransform(32)(photo, "a dog", random.Random(seed))
    assert photo.tobytes() == before


def test_whole_image_without_flip_or_augment_is_a_plain_resize():
    square = Image.radial_gradient("L").convert("RGB")
    image, _ = TrainTransform(64, min_scale=1.0, flip="never", augment=False)(square, "", random.Random(0))
    # No slanted box of the whole area fits, so the fallback takes the whole square.
    assert is_equal(image, square.resize((64, 64), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("flip", "flipped_caption"), [("always", "a cat left of a dog"), ("caption_aware", "a cat right of a dog")]
)
def test_flips_mirror_every_second_image(flip, flipped_caption, photo):
    plain = TrainTransform(32, flip="never", augment=False)
    transform = TrainTransform(32, flip=flip, augment=False)
    num_flips = 0
    for seed in range(200):
        unflipped, _ = plain(photo, "a cat left of a dog", random.Random(seed))
        image, caption = transform(photo, "a cat left of a dog", random.Random(seed))
        if is_equal(image, unflipped):
            assert caption == "a cat left of a dog"
        else:
            assert is_equal(image, unflipped.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
            assert caption == flipped_caption
            num_flips += 1
    assert num_flips == pytest.approx(100, abs=25)


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("a dog left of a cat, right of a tree", "a dog right of a cat, left of a tree"),
        ("LEFT Right left.", "RIGHT Left right."),
        ("the leftmost cup on the right-hand shelf", "the rightmost cup on the left-hand shelf"),
        ("bright lights in a cleft, copyright leftover", "bright lights in a cleft, copyright leftover"),
        ("", ""),
    ],
)
def test_mirrored_captions_swap_whole_words_and_back(caption, mirrored):
    assert mirror_caption(caption) == mirrored
    assert mirror_caption(mirrored) == caption


def test_crops_are_uniform_in_area_and_symmetric_in_aspect():
    width, height = 400, 400
    boxes = [sample_crop_box(width, height, random.Random(seed)) for seed in range(4000)]
    sizes = [(right - left, bottom - top) for left, top, right, bottom in boxes]
    areas = [w * h / (width * height) for w, h in sizes]
    log_aspects = [math.log(w / h) for w, h in sizes]
    assert min(areas) > 0.195
    assert max(areas) <= 1.0
    # In a square an aspect a fits an area s where |ln a| <= -ln s: always below s = 3/4, with probability
    # -ln(s) / ln(4/3) above. The accepted mass is 0.55 + 0.119 = 0.669 and its mean (0.2613 + 0.0989) / 0.669 = 0.538.
    assert mean(areas) == pytest.approx(0.538, abs=0.01)
    assert mean(area < 0.4 for area in areas) == pytest.approx(0.2 / 0.669, abs=0.025)
    assert mean(log_aspects) == pytest.approx(0.0, abs=0.01)
    assert max(map(abs, log_aspects)) < math.log(4 / 3) + 0.02
    # The centres of the crops are spread symmetrically over the image.
    assert mean(left + right for left, _, right, _ in boxes) / 2 == pytest.approx(width / 2, abs=3)


@pytest.mark.parametrize(("size", "expected"), SHORTEST_FALLBACK.items())
def test_extreme_aspects_fall_back_to_a_centred_box(size, expected):
    left, top, right, bottom = sample_crop_box(*size, random.Random(0))
    assert (right - left, bottom - top) == expected
    assert abs(left + right - size[0]) <= 1
    assert abs(top + bottom - size[1]) <= 1


def test_boxes_lie_within_any_image():
    rng = random.Random(0)
    for _ in range(2000):
        width, height = rng.randint(1, 30), rng.randint(1, 30)
        left, top, right, bottom = sample_crop_box(width, height, rng, min_scale=0.01)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size=0"),
        ({"size": 8, "min_scale": 0.0}, "min_scale=0.0"),
        ({"size": 8, "min_scale": 1.5}, "min_scale=1.5"),
        ({"size": 8, "flip": True}, "pass one of 'always', 'caption_aware', 'never'"),
    ],
)
def test_invalid_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainTransform(**arguments)


@pytest.mark.parametrize(("arguments", "message"), [((-1, 5), "num_operations=-1"), ((2, 11), "level=11")])
def test_invalid_augmentation_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomAugment(*arguments)


def test_modes_other_than_rgb_raise():
    with pytest.raises(ValueError, match="mode L, expected RGB"):
        TrainTransform(8)(Image.new("L", (9, 9)), "", random.Random(0))
