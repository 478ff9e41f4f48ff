# SPDX-License-Identifier: BSD-3-Clause
"""Plain and noisy images, in memory, encoded and as files."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def plain_image(color: str | tuple[int, int, int] = "red", size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, color)


def grey_image(level: int = 0, size: tuple[int, int] = (4, 4)) -> Image.Image:
    return plain_image((level, level, level), size)


def noise_images(number: int, size: tuple[int, int] = (40, 30), seed: int = 0) -> list[Image.Image]:
    """Different images of coarse random patches."""
    noise = np.random.default_rng(seed).integers(0, 256, size=(number, 6, 8, 3), dtype=np.uint8)
    return [Image.fromarray(levels).resize(size) for levels in noise]


def encode_image(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def encoded_image(
    color: str | tuple[int, int, int] = "red", format: str = "PNG", size: tuple[int, int] = (4, 3)
) -> bytes:
    return encode_image(plain_image(color, size), format)


def write_image(path: Path, color: str | tuple[int, int, int] = "red", size: tuple[int, int] = (40, 30)) -> Path:
    """Writes a plain image; creates the parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain_image(color, size).save(path)
    return path


def write_images(folder: Path, *colors: str, size: tuple[int, int] = (40, 30)) -> list[Path]:
    """Writes `<color>.png` for each color."""
    return [write_image(folder / f"{color}.png", color, size) for color in colors]
