# SPDX-License-Identifier: BSD-3-Clause
"""Renders self-contained HTML pages from `templates/`, with images and with charts for light and dark mode."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from PIL import Image


if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Palette:
    """Colours of a chart: text, background, grid, and series in order."""

    ink: str
    card: str
    line: str
    series: tuple[str, ...]


LIGHT = Palette("#3d4655", "#ffffff", "#e2e5ea", ("#2662d9", "#c2540a", "#1f8a4c", "#8a4fbf"))
DARK = Palette("#b9c2d0", "#1c222c", "#323a47", ("#6f9bff", "#f2924f", "#4cc07c", "#bf8cf0"))


@dataclass(frozen=True)
class Chart:
    """A chart as two image URLs, for light and for dark pages."""

    light: str
    dark: str
    caption: str


def render_page(template: str, **values: Any) -> str:
    """Renders a file of `templates/`. All values are escaped."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("blip_hf"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "count": _count, "number": _number}
    return environment


def percent(share: float | None) -> str:
    """Formats a share in [0, 1].

    Example:
        >>> percent(0.0625)
        '6.2%'
    """
    return "—" if share is None else f"{100 * share:.1f}%"


def _count(number: int) -> str:
    return f"{number:,}"


def _number(value: float | None, decimals: int) -> str:
    return "—" if value is None else f"{value:.{decimals}f}"


def png_url(image: Image.Image) -> str:
    """Encodes an image as a lossless data URL."""
    return _data_url(_encoded(image, format="PNG"), "image/png")


def thumbnail_url(image: Image.Image, max_side: int = 240) -> str:
    """Encodes an RGB image as a JPEG data URL, scaled down to `max_side` pixels."""
    small = image.copy()
    small.thumbnail((max_side, max_side))
    return _data_url(_encoded(small, format="JPEG", quality=82), "image/jpeg")


def draw_chart(
    draw: "Callable[[Axes, Palette], Any]", caption: str, *, size: tuple[float, float] = (5.4, 3.4)
) -> Chart:
    """Draws a chart in both palettes.

    Args:
        draw (`Callable`):
            Draws on the axes in the colours of the palette.
        caption (`str`):
            Caption and alternative text.
        size (`tuple[float, float]`, *optional*, defaults to `(5.4, 3.4)`):
            Width and height in inches. Small sizes keep the text legible on a phone.

    Raises:
        ImportError: If Matplotlib is not installed.
    """
    light, dark = (_data_url(_draw(draw, palette, size), "image/png") for palette in (LIGHT, DARK))
    return Chart(light, dark, caption)


def _draw(draw: "Callable[[Axes, Palette], Any]", palette: Palette, size: tuple[float, float]) -> bytes:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Charts need Matplotlib, which is not installed: pip install 'blip_hf[demo]'") from error
    figure = Figure(figsize=size, layout="constrained", facecolor=palette.card)
    axes = figure.subplots()
    axes.set_facecolor(palette.card)
    axes.grid(color=palette.line)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(palette.line)
    axes.tick_params(colors=palette.ink, which="both", length=0)
    draw(axes, palette)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set_color(palette.ink)
    buffer = io.BytesIO()
    # Without the version of Matplotlib, equal charts have equal bytes.
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def _data_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


__all__ = ["DARK", "LIGHT", "Chart", "Palette", "draw_chart", "percent", "png_url", "render_page", "thumbnail_url"]
