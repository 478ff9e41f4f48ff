# SPDX-License-Identifier: BSD-3-Clause
"""Pages that need nothing beside themselves: their frame, their look in light and in dark, images and charts in them."""

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from PIL import Image


if TYPE_CHECKING:
    from matplotlib.axes import Axes


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

_STYLE = """:root { --ink: #1c2330; --quiet: #5d6675; --page: #fafafa; --card: #fff; --line: #e2e5ea; --good: #1f8a4c;
  --bad: #c62f34; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ef; --quiet: #9aa4b4; --page: #14181f; --card: #1c222c; --line: #323a47; --good: #4cc07c;
    --bad: #f0666a; }
}
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 960px;
  margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 40px 0 12px; }
p { margin: 0 0 12px; max-width: 70ch; }
.quiet { color: var(--quiet); font-size: 14px; }
.scroll { overflow-x: auto; margin: 0 0 12px; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line); }
th, td { padding: 8px 18px; text-align: right; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; font-size: 14px; color: var(--quiet); }
td.value { font-weight: 600; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 14px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); padding: 12px; }
figure img { width: 100%; display: block; }
figcaption { font-size: 14px; line-height: 1.4; overflow-wrap: anywhere; }
figure.right, figure.wrong { border-top: 4px solid var(--good); }
figure.wrong { border-top-color: var(--bad); }
figure.right img, figure.wrong img { margin-bottom: 8px; }
.verdict { font-weight: 600; color: var(--good); }
.wrong .verdict { color: var(--bad); }
@media (max-width: 480px) {
  body { padding: 20px 14px 48px; }
  .grid { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px; }
  th, td { padding: 7px 10px; font-size: 14px; }
}
"""


@dataclass(frozen=True)
class Palette:
    """Colours of a chart.

    Args:
        ink (`str`):
            Of text.
        card (`str`):
            Of the ground.
        line (`str`):
            Of the grid.
        series (`tuple[str, ...]`):
            Of what is drawn, in order.
    """

    ink: str
    card: str
    line: str
    series: tuple[str, ...]


LIGHT = Palette("#3d4655", "#ffffff", "#e2e5ea", ("#2662d9", "#c2540a", "#1f8a4c", "#8a4fbf"))
DARK = Palette("#b9c2d0", "#1c222c", "#323a47", ("#6f9bff", "#f2924f", "#4cc07c", "#bf8cf0"))


def render_page(title: str, body: str, *, style: str = "") -> str:
    """A page in the house style.

    Args:
        title (`str`):
            What the browser's tab shows.
        body (`str`):
            HTML.
        style (`str`, *optional*, defaults to `""`):
            More CSS.

    Returns:
        `str`: HTML.
    """
    return _PAGE.format(title=escape(title), style=_STYLE + style, body=body)


def render_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, value_column: int | None = None) -> str:
    """A table that scrolls sideways where it is wider than the screen.

    Args:
        head (sequence of `str`):
            Headings of the columns.
        rows (iterable of sequences of `str`):
            Cells, as plain text.
        value_column (`int`, *optional*):
            Column to set in bold.

    Returns:
        `str`: HTML.
    """
    headings = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = [f"<tr>{''.join(_cell(cell, i == value_column) for i, cell in enumerate(row))}</tr>" for row in rows]
    return "\n".join(['<div class="scroll"><table>', f"<tr>{headings}</tr>", *lines, "</table></div>"])


def percent(share: float) -> str:
    """A share as tables show it.

    Args:
        share (`float`):
            In [0, 1].

    Returns:
        `str`: with one decimal.

    Example:
        >>> percent(0.0625)
        '6.2%'
    """
    return f"{100 * share:.1f}%"


def png_url(image: Image.Image | bytes) -> str:
    """An image within the page, without loss.

    Args:
        image (`PIL.Image.Image` or `bytes`):
            The image, or a PNG.

    Returns:
        `str`: for `src`.
    """
    return _data_url(image if isinstance(image, bytes) else _encoded(image, format="PNG"), "image/png")


def thumbnail_url(image: Image.Image, max_side: int = 240) -> str:
    """A small image within the page.

    Args:
        image (`PIL.Image.Image`):
            In RGB.
        max_side (`int`, *optional*, defaults to 240):
            Its longer side in pixels, where the image is larger.

    Returns:
        `str`: for `src`.
    """
    small = image.copy()
    small.thumbnail((max_side, max_side))
    return _data_url(_encoded(small, format="JPEG", quality=82), "image/jpeg")


def render_chart(draw: "Callable[[Axes, Palette], Any]", alt: str, *, size: tuple[float, float] = (5.4, 3.4)) -> str:
    """A chart in two versions, of which the browser shows the one for light or for dark pages.

    Args:
        draw (`Callable`):
            Draws on the axes in the colours of the palette.
        alt (`str`):
            What it shows, for those who cannot see it.
        size (`tuple[float, float]`, *optional*, defaults to `(5.4, 3.4)`):
            Width and height in inches. Fonts are legible on a phone at the default.

    Returns:
        `str`: HTML.

    Raises:
        ImportError: If Matplotlib is not installed.
    """
    light, dark = (png_url(_draw(draw, palette, size)) for palette in (LIGHT, DARK))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{escape(alt)}" src="{light}"></picture>'
    )


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
    # Without the version of Matplotlib in it, equal charts are equal bytes.
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _cell(text: str, is_value: bool) -> str:
    return f'<td class="value">{escape(text)}</td>' if is_value else f"<td>{escape(text)}</td>"


def _encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def _data_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


__all__ = [
    "DARK",
    "LIGHT",
    "Palette",
    "percent",
    "png_url",
    "render_chart",
    "render_page",
    "render_table",
    "thumbnail_url",
]
