# SPDX-License-Identifier: BSD-3-Clause
"""Shards of image-text samples for CapFilt. Broken records are counted as skipped and never stop a stream.

A shard is read from its start on each access, one sample at a time, so memory does not grow with the data.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Literal

from PIL import Image

from ...image_utils import find_image_error, open_image
from ..text import pre_caption


Reason = Literal[
    "unreadable_image", "truncated_tar", "empty_text", "huge_text", "huge_image", "bad_record", "outside_folder"
]

MAX_TEXT_LENGTH = 4096
"""Maximum number of characters of a text."""


@dataclass(frozen=True)
class Sample:
    """An image with its texts."""

    sample_id: str  # unique in the source and reproducible
    image: bytes | str  # encoded, or its path
    texts: tuple[str, ...]  # at least one
    image_id: str

    def open_image(self) -> Image.Image:
        """Decodes the image, upright and in RGB. Raises `UnreadableImageError` for a broken one."""
        return open_image(self.image, name=f"of {self.sample_id}")


@dataclass(frozen=True)
class Skipped:
    """A record that was skipped, with the reason and details."""

    sample_id: str  # or the name of the shard
    reason: Reason
    detail: str


Stream = Iterator[Sample | Skipped]


def _unknown() -> None:
    """The count of a shard that must be read to be counted."""


@dataclass(frozen=True)
class Shard:
    """A part of a source that is read, scored and written together."""

    name: str  # a valid file name, reproducible
    read: Callable[[], Stream]  # starts from the beginning; does not check images
    count: Callable[[], int | None] = _unknown  # its records, if known without reading them

    def num_records(self) -> int | None:
        """Number of records, or `None` if it is only known after reading them."""
        return self.count()

    def samples(self, *, checks_images: bool = True) -> Stream:
        """Samples and skipped records in order. Joins consecutive records with the same id and image into one sample.

        `checks_images` reads only the header of an image, so [`Sample.open_image`] may still raise.
        """
        seen: set[str] = set()
        for item in _merge_neighbours(self.read()):
            if isinstance(item, Sample):
                if item.sample_id in seen:
                    yield Skipped(item.sample_id, "bad_record", "another sample of this shard has the same id")
                    continue
                seen.add(item.sample_id)
                error = find_image_error(item.image) if checks_images else None
                if error is not None:
                    yield Skipped(item.sample_id, *error)
                    continue
            yield item


def cut_rows(num_rows: int, shard_size: int) -> list[tuple[int, int]]:
    """First row and end of each shard."""
    return [(start, min(start + shard_size, num_rows)) for start in range(0, num_rows, shard_size)]


def check_texts(sample_id: str, image: bytes | str, texts: Iterable[str], image_id: str) -> Stream:
    """Samples of the usable texts, and a `Skipped` for each other text, in order. [`Shard.samples`] joins them."""
    for name, value in (("image_id", image_id), ("path", image)):
        if isinstance(value, str) and not is_unicode(value):
            yield Skipped(sample_id, "bad_record", f"its {name} is not valid Unicode: {value!a}")
            return
    for skipped, run in groupby(texts, key=partial(_find_text_error, sample_id)):
        if skipped is None:
            yield Sample(sample_id, image, tuple(text.strip() for text in run), image_id)
        else:
            yield from (skipped for _ in run)


def _merge_neighbours(items: Stream) -> Stream:
    merged: Sample | None = None
    skipped: list[Skipped] = []  # since `merged`; further texts of the same image may follow
    for item in items:
        if isinstance(item, Skipped):
            skipped.append(item)
        elif merged is not None and (item.image_id, item.image) == (merged.image_id, merged.image):
            merged = replace(merged, texts=merged.texts + item.texts)
        else:
            yield from _in_order(merged, skipped)
            merged, skipped = item, []
    yield from _in_order(merged, skipped)


def _in_order(sample: Sample | None, skipped: list[Skipped]) -> list[Sample | Skipped]:
    return [*skipped] if sample is None else [sample, *skipped]


def _find_text_error(sample_id: str, text: str) -> Skipped | None:
    if len(text) > MAX_TEXT_LENGTH:
        return Skipped(sample_id, "huge_text", f"{len(text)} characters, at most {MAX_TEXT_LENGTH} are accepted")
    if not pre_caption(text).strip():
        return Skipped(sample_id, "empty_text", f"{text!r} has no words left")
    if not is_unicode(text):
        return Skipped(sample_id, "bad_record", f"its text is not valid Unicode: {text!a}")
    return None


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can encode the text. JSON can contain half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


__all__ = [
    "MAX_TEXT_LENGTH",
    "Reason",
    "Sample",
    "Shard",
    "Skipped",
    "Stream",
    "check_texts",
    "cut_rows",
    "is_unicode",
]
