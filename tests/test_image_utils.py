# SPDX-License-Identifier: BSD-3-Clause
import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from blip_hf.image_utils import UnreadableImageError, open_image
from tests.support.images import encode_image


LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
NOISE = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)

# The inverse of the transform that a viewer applies for each orientation (EXIF 2.3, table 6).
STORED_FOR_ORIENTATION = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, 1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, -1),
}


def with_orientation(pixels: np.ndarray, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encode_image(Image.fromarray(np.ascontiguousarray(STORED_FOR_ORIENTATION[orientation](pixels))), exif=exif)


def assert_pixels(image: Image.Image, expected: np.ndarray) -> None:
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), expected)


def grey(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels[..., None], 3, axis=-1)


@pytest.mark.parametrize(
    "kind", ["path", "string", "bytes", "bytearray", "memoryview", "file", "pil", "array", "dict bytes", "dict path"]
)
def test_all_input_types_give_the_same_image(tmp_path: Path, kind: str):
    path = tmp_path / "image.png"
    content = encode_image(Image.fromarray(COLOURS))
    path.write_bytes(content)
    source = {
        "path": path,
        "string": str(path),
        "bytes": content,
        "bytearray": bytearray(content),
        "memoryview": memoryview(content),
        "file": io.BytesIO(content),
        "pil": Image.fromarray(COLOURS),
        "array": COLOURS,
        "dict bytes": {"bytes": content, "path": "elsewhere.png"},
        "dict path": {"bytes": None, "path": str(path)},
    }[kind]
    assert_pixels(open_image(source), COLOURS)


def test_grey_and_rgba_arrays_are_accepted():
    assert_pixels(open_image(LEVELS), grey(LEVELS))
    assert_pixels(open_image(LEVELS[..., None]), grey(LEVELS))
    transparent = np.dstack([COLOURS, np.zeros((6, 4), dtype=np.uint8)])
    assert_pixels(open_image(transparent), np.full((6, 4, 3), 255))


@pytest.mark.parametrize("scale", [1, 1 / 255])
def test_float_arrays_and_tensors_in_either_layout_are_accepted(scale: float):
    floats = COLOURS.astype(np.float32) * scale
    for image in (floats, torch.from_numpy(floats), torch.from_numpy(floats).permute(2, 0, 1)):
        assert_pixels(open_image(image), COLOURS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(orientation: int):
    image = open_image(with_orientation(COLOURS, orientation))
    assert_pixels(image, COLOURS)
    assert_pixels(open_image(image), COLOURS)


def test_exif_orientation_of_a_pil_image_is_applied_and_the_image_unchanged():
    image = Image.open(io.BytesIO(with_orientation(COLOURS, 6)))
    assert_pixels(open_image(image), COLOURS)
    assert image.size == (6, 4)
    assert image.getexif()[ExifTags.Base.Orientation] == 6


def test_broken_exif_does_not_make_an_image_unreadable():
    content = encode_image(Image.new("RGB", (8, 8), "red"), "JPEG", exif=b"Exif\0\0no such thing")
    assert open_image(content).size == (8, 8)


def test_half_transparent_pixels_are_laid_over_white():
    image = Image.new("RGBA", (1, 3), (200, 100, 0, 0))
    image.putpixel((0, 1), (200, 100, 0, 128))
    image.putpixel((0, 2), (200, 100, 0, 255))
    # 128/255 of the colour and 127/255 of white: 200 * 128/255 + 127 = 227.4, 100 * 128/255 + 127 = 177.2, 127.
    assert_pixels(open_image(image), np.array([[[255] * 3], [[227, 177, 127]], [[200, 100, 0]]]))


def test_grey_with_alpha_is_laid_over_white():
    image = Image.new("LA", (1, 2), (0, 0))
    image.putpixel((0, 1), (40, 255))
    assert_pixels(open_image(image), np.array([[[255] * 3], [[40] * 3]]))


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
def test_transparent_palette_colours_become_white(transparency: int | bytes):
    image = Image.new("P", (1, 2))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((0, 1), 1)
    content = encode_image(image, transparency=transparency)
    assert_pixels(open_image(content), np.array([[[255] * 3], [[40, 50, 60]]]))


def test_opaque_palette_keeps_its_colours():
    image = Image.new("P", (1, 1))
    image.putpalette([10, 20, 30])
    assert_pixels(open_image(image), np.array([[[10, 20, 30]]]))


def test_a_transparent_key_colour_becomes_white():
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    content = encode_image(image, transparency=(1, 2, 3))
    assert_pixels(open_image(content), np.array([[[255] * 3, [4, 5, 6]]]))


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_sixteen_bit_levels_are_scaled_and_not_clipped(byte_order: str):
    image = Image.frombytes(
        "I;16" if byte_order == "<u2" else "I;16B",
        (16, 16),
        (LEVELS.astype(np.uint16) * 257).astype(byte_order).tobytes(),
    )
    assert_pixels(open_image(image), grey(LEVELS))


def test_a_sixteen_bit_png_file_is_scaled(tmp_path: Path):
    path = tmp_path / "deep.png"
    Image.fromarray(LEVELS.astype(np.uint16) * 257).save(path)
    assert_pixels(open_image(path), grey(LEVELS))


@pytest.mark.parametrize("step", [1, 257])
def test_mode_i_is_read_as_8_or_16_bits(step: int):
    assert_pixels(open_image(Image.fromarray(LEVELS.astype(np.int32) * step)), grey(LEVELS))


@pytest.mark.parametrize("white", [1, 255])
def test_mode_f_is_read_as_0_to_1_or_0_to_255(white: int):
    assert_pixels(open_image(Image.fromarray((LEVELS / 255 * white).astype(np.float32))), grey(LEVELS))


@pytest.mark.parametrize("level", [-1.0, 400.0, float("nan")])
def test_unknown_range_of_levels_raises(level: float):
    with pytest.raises(UnreadableImageError, match=r"levels from .* of type float32, expected 0 to 1 or 0 to 255"):
        open_image(Image.fromarray(np.full((2, 2), level, dtype=np.float32)))


def test_cmyk_and_one_bit_are_converted():
    assert_pixels(open_image(Image.new("CMYK", (1, 1), (255, 0, 0, 0))), np.array([[[0, 255, 255]]]))
    assert_pixels(open_image(Image.new("1", (1, 1), 1)), np.array([[[255, 255, 255]]]))


def test_first_frame_of_an_animation_is_used():
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    content = encode_image(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert_pixels(open_image(content), np.full((2, 2, 3), (255, 0, 0)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty or not an image"),
        (b"<html>404</html>", "empty or not an image"),
        (encode_image(Image.fromarray(NOISE), "JPEG")[:2000], "truncated"),
        (encode_image(Image.fromarray(NOISE))[:2000], "truncated"),
    ],
)
def test_a_broken_file_raises_an_error_that_names_it(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(
        UnreadableImageError,
        match=rf"broken\.jpg: .*{reason}.*Accepted is a file in a format that Pillow reads; replace",
    ):
        open_image(path)


def test_missing_file_and_folder_raise_with_their_names(tmp_path: Path):
    with pytest.raises(UnreadableImageError, match=r"nowhere\.jpg: there is no such file"):
        open_image(tmp_path / "nowhere.jpg")
    with pytest.raises(UnreadableImageError, match="it is a folder"):
        open_image(tmp_path)


def test_error_does_not_quote_a_whole_image():
    with pytest.raises(UnreadableImageError, match=r"AAAA\.\.\. \(100000 characters\): File name too long") as caught:
        open_image("A" * 100_000)
    assert len(str(caught.value)) < 1000


def test_lazily_opened_broken_file_raises_with_its_name(tmp_path: Path):
    path = tmp_path / "late.png"
    path.write_bytes(encode_image(Image.fromarray(NOISE))[:2000])
    with Image.open(path) as image, pytest.raises(UnreadableImageError, match=r"late\.png"):
        open_image(image)


def test_decompression_bomb_raises(tmp_path: Path):
    path = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    content = encode_image(Image.fromarray(COLOURS))
    path.write_bytes(content[:16] + header + content[29:])
    with pytest.raises(UnreadableImageError, match=r"bomb\.png"):
        open_image(path)


def test_a_given_name_is_used_in_the_error():
    with pytest.raises(UnreadableImageError, match="the image row 17"):
        open_image(b"", name="row 17")


@pytest.mark.parametrize(
    "source",
    [
        None,
        3,
        ["a.jpg"],
        {"bytes": None, "path": None},
        np.full((4, 4, 3), -1.0),
        np.zeros((5, 6, 2), dtype=np.uint8),
        np.zeros((0, 4, 3), dtype=np.uint8),
    ],
)
def test_non_images_raise(source: object):
    with pytest.raises(UnreadableImageError, match="Accepted is a path"):
        open_image(source)


def test_an_image_without_pixels_raises():
    with pytest.raises(UnreadableImageError, match=r"it has no pixels \(0 x 5\)"):
        open_image(Image.new("RGB", (0, 5)))


def test_the_error_is_a_value_error():
    assert issubclass(UnreadableImageError, ValueError)
