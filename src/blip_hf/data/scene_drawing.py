# SPDX-License-Identifier: BSD-3-Clause
"""Draws a scene with Pillow: flat shapes with smooth edges on a gradient."""

import math

from PIL import Image, ImageDraw

from .scene_layout import Scene, Thing


_OVERSAMPLING = 4  # Pillow does not anti-alias shapes, so they are drawn larger and downscaled


def draw_scene(scene: Scene, image_size: int) -> Image.Image:
    """RGB image of a scene."""
    side = image_size * _OVERSAMPLING
    shades = Image.new("RGB", (1, 2))
    shades.putdata(scene.background)
    canvas = shades.resize((side, side), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(canvas)
    for thing in scene.things:
        _draw_thing(pen, thing, side)
    return canvas.reduce(_OVERSAMPLING)


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, side: int) -> None:
    x, y, radius = thing.x * side, thing.y * side, thing.radius * side
    if thing.shape in _OUTLINES:
        pen.polygon([(x + radius * dx, y + radius * dy) for dx, dy in _OUTLINES[thing.shape]], fill=thing.shade)
        return
    box = (x - radius, y - radius, x + radius, y + radius)
    if thing.shape == "ring":
        pen.ellipse(box, outline=thing.shade, width=round(0.42 * radius))
    else:
        pen.ellipse(box, fill=thing.shade)


def _star() -> list[tuple[float, float]]:
    """Five outer points at radius 1, the first one up, and five inner ones at 0.45."""
    reaches = [1.0, 0.45] * 5
    angles = [math.pi * step / 5 for step in range(10)]
    return [
        (reach * math.sin(angle), 0.08 - reach * math.cos(angle)) for reach, angle in zip(reaches, angles, strict=True)
    ]


def _heart() -> list[tuple[float, float]]:
    """The usual heart curve, scaled into the box."""
    angles = [2 * math.pi * step / 60 for step in range(60)]
    return [
        (
            math.sin(angle) ** 3,
            -(13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle) + 2.5)
            / 15,
        )
        for angle in angles
    ]


def _cross() -> list[tuple[float, float]]:
    """Upright, with arms of width 0.66."""
    corner = [(0.33, -1.0), (0.33, -0.33), (1.0, -0.33)]
    points = []
    for _ in range(4):
        points += corner
        corner = [(-y, x) for x, y in corner]
    return points


# Points in the box from -1 to 1, y downwards. Pillow draws circle and ring as ellipses.
_OUTLINES = {
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": [(0.0, -0.95), (1.0, 0.82), (-1.0, 0.82)],
    "star": _star(),
    "cross": _cross(),
    "heart": _heart(),
}


__all__ = ["draw_scene"]
