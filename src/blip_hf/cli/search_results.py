# SPDX-License-Identifier: BSD-3-Clause
"""What `blip-hf search` writes: a table for the eye, JSON, or a page with the images."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TextIO

from .tables import write_table


if TYPE_CHECKING:
    from ..search.index import BlipIndex, Hit, LabeledImage

SearchFormat = Literal["table", "json", "html"]
Result = dict[str, Any]

_NOT_IN_TABLES = ("caption", "image_id", "width", "height")
_RANKED_SCORES = ("itm_probability", "pair_score")


def hit_results(hits: "Sequence[Hit]") -> list[Result]:
    """One result for each image, without scores that were not computed."""
    is_ranked = any(hit.itm_probability is not None for hit in hits)
    return [_as_result(hit, rank=number) | _ranked_scores(hit, is_ranked) for number, hit in enumerate(hits, 1)]


def duplicate_results(groups: "Sequence[Sequence[Hit]]") -> list[Result]:
    """One result for each image of each group."""
    return [_as_result(hit, group=number) for number, group in enumerate(groups, 1) for hit in group]


def label_results(images: "Sequence[LabeledImage]", k: int) -> list[Result]:
    """The `k` most probable images of each label."""
    counts: Counter[str] = Counter()
    results = []
    for image in images:
        counts[image.label] += 1
        if counts[image.label] <= k:
            results.append({"label": image.label, "probability": image.probability, "image": image.image})
    return results


def _as_result(hit: "Hit", **first: Any) -> Result:
    return {
        **first,
        "similarity": hit.similarity,
        "image": hit.image,
        **{name: getattr(hit, name) for name in _NOT_IN_TABLES},
    }


def _ranked_scores(hit: "Hit", is_ranked: bool) -> Result:
    return {name: getattr(hit, name) for name in _RANKED_SCORES} if is_ranked else {}


def write_results(
    results: Sequence[Result], stream: TextIO, output_format: SearchFormat, *, title: str, index: "BlipIndex"
) -> None:
    """Writes results. Images of a page are part of it, scaled down."""
    if output_format == "html":
        stream.write(_page(results, title, index))
    elif output_format == "json":
        write_table(results, stream, "json")
    else:
        write_table([_row(result) for result in results], stream, "table")


def _row(result: Result) -> Result:
    """The columns of a table: scores first, and the path relative to the working folder."""
    row = {name: value for name, value in result.items() if name not in (*_NOT_IN_TABLES, "image")}
    for name in _RANKED_SCORES:
        if name in row and row[name] is None:
            row[name] = float("nan")  # could not be read again
    return {**row, "image": short_path(result["image"])}


def short_path(path: str) -> str:
    """A path relative to the working folder, if it is inside it."""
    folder = os.path.join(os.getcwd(), "")
    return path.removeprefix(folder)


def _page(results: Sequence[Result], title: str, index: "BlipIndex") -> str:
    from ..image_utils import UnreadableImageError, open_image
    from ..pages import render_page, thumbnail_url

    content = index.image_sources(result["image"] for result in results)

    def url(name: str) -> str | None:
        try:
            return thumbnail_url(open_image(content[name])) if name in content else None
        except UnreadableImageError:
            return None

    images = [
        {
            "url": url(result["image"]),
            "name": short_path(result["image"]),
            "caption": result.get("caption") or "",
            "scores": _scores(result),
        }
        for result in results
    ]
    return (
        render_page("search.html.jinja", title=title, num_indexed=len(index), images=images)
        .encode("utf-8", "backslashreplace")
        .decode()
    )


def _scores(result: Result) -> str:
    words = {"group": "group {}", "label": "{}", "similarity": "cosine {:.3f}", "probability": "probability {:.3f}"}
    words |= {"itm_probability": "ITM {:.3f}", "pair_score": "score {:.3f}"}
    return ", ".join(text.format(result[name]) for name, text in words.items() if result.get(name) is not None)


__all__ = [
    "Result",
    "SearchFormat",
    "duplicate_results",
    "hit_results",
    "label_results",
    "short_path",
    "write_results",
]
