# SPDX-License-Identifier: BSD-3-Clause
"""Draws the figures of "How it works" as SVG files beside this script.

python docs/figures/draw.py
"""

from html import escape
from pathlib import Path


FOLDER = Path(__file__).parent
BLUE, ORANGE, PURPLE, GREEN, GREY, WHITE = "#cfe2ff", "#ffd8a8", "#e2d4ff", "#d0efd4", "#e9ecef", "#ffffff"


def box(x: float, y: float, width: float, height: float, *lines: str, fill: str = WHITE) -> str:
    """A rectangle with centred lines of text; the first one is bold."""
    middle = y + height / 2 - 8 * (len(lines) - 1)
    words = [
        text(x + width / 2, middle + 16 * number + 4, line, bold=number == 0, anchor="middle")
        for number, line in enumerate(lines)
    ]
    shape = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="#495057"/>'
    return "\n".join([shape, *words])


def text(x: float, y: float, words: str, *, bold: bool = False, anchor: str = "start") -> str:
    """A line of text."""
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'


def arrow(*points: tuple[float, float]) -> str:
    """A line through points with an arrow head at its end."""
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="#495057" stroke-width="1.5" marker-end="url(#head)"/>'


def figure(width: int, height: int, title: str, *parts: str) -> str:
    """A figure on white, also readable in the dark scheme of the site."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            'font-family="system-ui, sans-serif" font-size="13" fill="#212529">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
            '<path d="M0,0 L8,4 L0,8 z" fill="#495057"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def text_roles() -> str:
    """The three roles of the text transformer; parts of one colour are the same parameters."""
    columns = [
        (210, "text encoder", "[CLS]", BLUE, "self-attention", None, "projection", "ITC: cosine"),
        (400, "grounded encoder", "[ENC]", BLUE, "self-attention", PURPLE, "ITM head", "ITM: match or not"),
        (590, "grounded decoder", "[DEC]", ORANGE, "causal self-attention", PURPLE, "LM head", "LM: next token"),
    ]
    parts = [
        box(20, 190, 140, 60, "image encoder", "ViT, run once", fill=GREY),
        box(20, 330, 140, 40, "image"),
        arrow((90, 330), (90, 252)),
        box(20, 90, 140, 40, "projection", "[CLS] of the image"),
        arrow((90, 190), (90, 132)),
        # The image states go to both cross-attentions.
        arrow((160, 220), (182, 220), (182, 290), (385, 290), (385, 206), (398, 206)),
        arrow((385, 290), (575, 290), (575, 206), (588, 206)),
    ]
    for x, name, first, fill, attention, cross, head, loss in columns:
        parts += [
            text(x + 80, 30, loss, bold=True, anchor="middle"),
            box(x, 44, 160, 30, head),
            arrow((x + 80, 140), (x + 80, 76)),
            f'<rect x="{x - 8}" y="112" width="176" height="166" rx="8" fill="none" stroke="#868e96" '
            'stroke-dasharray="4 3"/>',
            text(x + 92, 106, "12 layers", anchor="start"),
            box(x, 140, 160, 36, "feed-forward", fill=GREEN),
            *([box(x, 190, 160, 32, "cross-attention", fill=cross)] if cross else []),
            box(x, 240, 160, 32, attention, fill=fill),
            arrow((x + 80, 330), (x + 80, 274)),
            box(x, 330, 160, 40, f"{first} a red ring ...", name),
        ]
        parts.append(arrow((x + 80, 240), (x + 80, 224 if cross else 178)))
        if cross:
            parts.append(arrow((x + 80, 190), (x + 80, 178)))
    parts.append(
        text(
            20,
            405,
            "Coloured boxes of one colour are the same parameters. Word and position embeddings are shared too.",
        )
    )
    return figure(770, 420, "The three roles of BLIP's text transformer", *parts)


def image_memory() -> str:
    """An image is encoded and projected once; all rows of text read the result."""
    readers = [
        ("beams", "of one caption"),
        ("ITM pairs", "positives, hard negatives"),
        ("LM rows", "captions in training"),
        ("candidates", "of a retrieval query"),
        ("CapFilt", "a caption and two scores"),
    ]
    parts = [
        box(20, 110, 90, 60, "image"),
        arrow((110, 140), (148, 140)),
        box(150, 100, 120, 80, "image encoder", "once", "(p, d)", fill=GREY),
        arrow((270, 140), (308, 140)),
        box(
            310,
            70,
            170,
            140,
            "image memory",
            "keys and values",
            "of each text layer",
            "once",
            "(h, p, head_dim)",
            fill=PURPLE,
        ),
    ]
    for number, (name, detail) in enumerate(readers):
        y = 10 + 54 * number
        parts += [
            arrow((480, 140), (510, 140), (510, y + 22), (538, y + 22)),
            box(540, y, 190, 44, name, detail, fill=GREEN),
        ]
    parts += [
        text(
            20,
            310,
            "g rows of text that read one image are folded into the query axis; keys and values are not copied:",
        ),
        text(20, 336, "queries  (n * g, t, d)  ->  (n, h, g * t, head_dim)", bold=True),
        text(20, 358, "keys     (n, h, p, head_dim), as they are", bold=True),
    ]
    return figure(750, 380, "The image memory", *parts)


def capfilt() -> str:
    """The data flow of CapFilt."""
    parts = [
        box(20, 20, 150, 50, "web pairs", "many, noisy", fill=GREY),
        box(20, 230, 150, 50, "human pairs", "few, clean", fill=GREY),
        box(230, 20, 150, 50, "pre-trained model", fill=BLUE),
        arrow((170, 45), (228, 45)),
        box(230, 120, 150, 50, "captioner", "fine-tuned: LM", fill=ORANGE),
        box(230, 200, 150, 50, "filter", "fine-tuned: ITC, ITM", fill=PURPLE),
        arrow((305, 70), (305, 118)),
        arrow((350, 70), (350, 95), (400, 95), (400, 217), (382, 217)),
        arrow((170, 255), (205, 255), (205, 145), (228, 145)),
        arrow((205, 225), (228, 225)),
        arrow((95, 70), (95, 105), (440, 105), (440, 137), (458, 137)),
        box(460, 120, 130, 50, "web text and", "synthetic text"),
        arrow((380, 153), (458, 153)),
        arrow((525, 170), (525, 198)),
        box(460, 200, 130, 50, "matched?", "ITM at least 0.5"),
        arrow((380, 237), (458, 237)),
        arrow((590, 225), (628, 225)),
        box(630, 200, 110, 50, "kept pairs", fill=GREEN),
        arrow((685, 250), (685, 298)),
        arrow((95, 280), (95, 325), (588, 325)),
        box(590, 300, 150, 50, "a new model", "from scratch", fill=BLUE),
        text(470, 272, "else dropped; the score is stored"),
    ]
    return figure(760, 370, "CapFilt", *parts)


FIGURES = {"text_roles.svg": text_roles, "image_memory.svg": image_memory, "capfilt.svg": capfilt}


if __name__ == "__main__":
    for name, draw in FIGURES.items():
        (FOLDER / name).write_text(draw())
