# SPDX-License-Identifier: BSD-3-Clause
"""Random scenes: the objects they contain and their positions.

Coordinates are fractions of the image, x to the right and y downwards. An object fits in the square box of its radius,
and the boxes of two objects never touch.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass


COLOURS = {
    "red": (219, 43, 48),
    "orange": (250, 137, 22),
    "yellow": (247, 208, 32),
    "green": (36, 158, 74),
    "blue": (38, 98, 217),
    "purple": (128, 52, 171),
    "pink": (246, 132, 186),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart")
SMALL_RADII = (0.12, 0.145)
LARGE_RADII = (0.21, 0.25)

# Position of a single object between the corners (0, 0) and (1, 1).
PLACES = {
    "middle": (0.5, 0.5),
    "top left": (0.0, 0.0),
    "top right": (1.0, 0.0),
    "bottom left": (0.0, 1.0),
    "bottom right": (1.0, 1.0),
}

# Axis of each relation, and whether the first object has the smaller coordinate.
RELATIONS = {"left of": ("x", True), "right of": ("x", False), "above": ("y", True), "below": ("y", False)}
OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

Shade = tuple[int, int, int]
Background = tuple[Shade, Shade]  # at the top and at the bottom of the image

_MARGIN = 0.04
_NUM_COLUMNS = {2: (2, 3), 3: (2, 3), 4: (2, 3), 5: (3,)}


@dataclass(frozen=True, slots=True)
class Thing:
    """One drawn object. `shade` is its RGB colour, a variation of `colour`."""

    shape: str
    colour: str
    shade: Shade
    x: float
    y: float
    radius: float

    @property
    def size(self) -> str:
        """`"large"` or `"small"`."""
        return "large" if self.radius >= LARGE_RADII[0] else "small"


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of an image, and the fact that its caption states.

    A single object has a `place`. Two objects of different shape and colour have a `relation` of the small one to the
    large one. Two to five objects of the same shape and colour have neither.
    """

    things: tuple[Thing, ...]
    background: Background
    place: str | None = None
    relation: str | None = None


def sample_scene(rng: random.Random) -> Scene:
    """Samples a scene: one object, several equal ones, or two in a relation."""
    sampler = rng.choices((_one_thing, _equal_things, _two_things), weights=(0.35, 0.25, 0.4))[0]
    return sampler(rng, _sample_background(rng))


def _one_thing(rng: random.Random, background: Background) -> Scene:
    place, (across, down) = rng.choice(list(PLACES.items()))
    radius = rng.uniform(*rng.choice((SMALL_RADII, LARGE_RADII)))
    slack = 1 - 2 * (_MARGIN + radius)
    # Jitter: towards the inside from a corner, to both sides from the middle.
    x, y = (
        _MARGIN + radius + slack * where + (0.5 - where + rng.uniform(-0.5, 0.5)) * 0.08 for where in (across, down)
    )
    thing = _paint(rng, rng.choice(SHAPES), rng.choice(list(COLOURS)), x, y, radius)
    return Scene((thing,), background, place=place)


def _equal_things(rng: random.Random, background: Background) -> Scene:
    count = rng.choice(list(_NUM_COLUMNS))
    shape, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
    num_columns = rng.choice(_NUM_COLUMNS[count])
    cell = (1 - 2 * _MARGIN) / num_columns
    things = []
    for position in rng.sample(range(num_columns**2), count):
        row, column = divmod(position, num_columns)
        radius = rng.uniform(0.11, min(0.16, cell / 2 - 0.02))
        slack = cell / 2 - radius - 0.015
        x, y = (_MARGIN + (index + 0.5) * cell + rng.uniform(-slack, slack) for index in (column, row))
        things.append(_paint(rng, shape, colour, x, y, radius))
    return Scene(tuple(things), background)


def _two_things(rng: random.Random, background: Background) -> Scene:
    relation, (axis, is_first) = rng.choice(list(RELATIONS.items()))
    radii = rng.uniform(*SMALL_RADII), rng.uniform(*LARGE_RADII)
    # Along the axis, the remaining space is split before, between and after the two.
    gap = rng.uniform(0.05, 0.1)
    free = 1 - 2 * (sum(radii) + _MARGIN) - gap
    first, second = radii if is_first else radii[::-1]
    start = _MARGIN + rng.uniform(0, free)
    centres = start + first, start + 2 * first + gap + second
    along = centres if is_first else centres[::-1]
    # Across it they are nearly aligned, so no other relation is true.
    level = rng.uniform(0.3, 0.7)
    across = level + rng.uniform(-0.06, 0.06), level

    shapes, colours = rng.sample(SHAPES, 2), rng.sample(list(COLOURS), 2)
    points = zip(along, across, strict=True) if axis == "x" else zip(across, along, strict=True)
    things = (
        _paint(rng, shape, colour, x, y, radius)
        for shape, colour, (x, y), radius in zip(shapes, colours, points, radii, strict=True)
    )
    return Scene(tuple(things), background, relation=relation)


def _paint(rng: random.Random, shape: str, colour: str, x: float, y: float, radius: float) -> Thing:
    """An object in a random shade of its colour."""
    light = rng.uniform(0.9, 1.05)
    shade = _as_shade(level * light + rng.uniform(-8, 8) for level in COLOURS[colour])
    return Thing(shape, colour, shade, x, y, radius)


def _sample_background(rng: random.Random) -> Background:
    """Two light, nearly grey shades."""
    level = rng.uniform(185, 250)
    tint = [rng.uniform(-5, 5) for _ in range(3)]
    slope = rng.uniform(-12, 12)
    return _as_shade(level + shift + slope for shift in tint), _as_shade(level + shift - slope for shift in tint)


def _as_shade(levels: Iterable[float]) -> Shade:
    red, green, blue = (min(255, max(0, round(level))) for level in levels)
    return red, green, blue


__all__ = ["COLOURS", "OPPOSITES", "PLACES", "RELATIONS", "SHAPES", "Scene", "Thing", "sample_scene"]
