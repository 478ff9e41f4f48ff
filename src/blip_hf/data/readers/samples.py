# SPDX-License-Identifier: BSD-3-Clause
"""Shards of image-text samples for CapFilt. Broken records are counted as skipped and never stop a stream.

A shard is read from its start whenever its samples are asked for, one sample at a time, so that memory does not grow
with the data.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Literal

from PIL import Image

from ...image_utils import find_image_error, open_image
from ..text import pre_caption


Reason = Literal["unreadable_image", "truncated_tar", "empty_text", "huge_text", "huge_image", "bad_record"]

MAX_TEXT_LENGTH = 4096
"""Characters of the longest text that is accepted."""


@dataclass(frozen=True)
class Sample:
    """An image with its texts.

    Args:
        sample_id (`str`):
            Unique in the source and the same at every reading.
        image (`bytes` or `str`):
            The encoded image, or its path.
        texts (`tuple[str, ...]`):
            The texts as written, at least one.
        image_id (`str`):
            The same for all texts of an image.
    """

    sample_id: str
    image: bytes | str
    texts: tuple[str, ...]
    image_id: str

    def open_image(self) -> Image.Image:
        """Decodes the image, upright and in RGB.

        Raises:
            UnreadableImageError: If the image is broken behind its header.
        """
        return open_image(self.image, name=f"of {self.sample_id}")


@dataclass(frozen=True)
class Skipped:
    """A record that was skipped.

    Args:
        sample_id (`str`):
            The sample, or the shard if no sample is known.
        reason (`str`):
            One of `"unreadable_image"`, `"truncated_tar"`, `"empty_text"` (no words left after normalisation),
            `"huge_text"`, `"huge_image"` and `"bad_record"`.
        detail (`str`):
            What was found.
    """

    sample_id: str
    reason: Reason
    detail: str


Stream = Iterator[Sample | Skipped]


@dataclass(frozen=True)
class Shard:
    """A part of a source that is read, scored and written together.

    Args:
        name (`str`):
            A valid file name, the same at every reading of the source.
        read (`Callable[[], Iterator]`):
            Starts to read from the beginning and yields one sample a record. Images are not checked.
    """

    name: str
    read: Callable[[], Stream]

    def samples(self, *, checks_images: bool = True) -> Stream:
        """Samples and skipped records in order. Neighbours with the same id and image are joined into one sample.

        Only the header of an image is checked, so [`Sample.open_image`] may still raise.

        Args:
            checks_images (`bool`, *optional*, defaults to `True`):
                Whether to check images, which is not needed if scores exist already.

        Yields:
            `Sample` or `Skipped`: the next one.
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


def check_texts(sample_id: str, image: bytes | str, texts: Iterable[str], image_id: str) -> Stream:
    """A sample with its usable texts, and a `Skipped` for each of the others, in order.

    The sample comes in pieces if a text between them is skipped; [`Shard.samples`] joins them.
    """
    for name, value in (("image_id", image_id), ("path", image)):
        if isinstance(value, str) and not _is_unicode(value):
            yield Skipped(sample_id, "bad_record", f"its {name} is not valid Unicode: {value!a}")
            return
    for skipped, run in groupby(texts, key=partial(_find_text_error, sample_id)):
        if skipped is None:
            yield Sample(sample_id, image, tuple(text.strip() for text in run), image_id)
        else:
            yield from (skipped for _ in run)


def _merge_neighbours(items: Stream) -> Stream:
    held: Sample | None = None
    skipped: list[Skipped] = []  # since `held`; further texts of the same image may follow
    for item in items:
        if isinstance(item, Skipped):
            skipped.append(item)
        elif held is not None and (item.image_id, item.image) == (held.image_id, held.image):
            held = replace(held, texts=held.texts + item.texts)
        else:
            yield from [held, *skipped] if held else skipped
            held, skipped = item, []
    yield from [held, *skipped] if held else skipped


def _find_text_error(sample_id: str, text: str) -> Skipped | None:
    if len(text) > MAX_TEXT_LENGTH:
        return Skipped(sample_id, "huge_text", f"{len(text)} characters, at most {MAX_TEXT_LENGTH} are accepted")
    if not pre_caption(text).strip():
        return Skipped(sample_id, "empty_text", f"{text!r} has no words left")
    if not _is_unicode(text):
        return Skipped(sample_id, "bad_record", f"its text is not valid Unicode: {text!a}")
    return None


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can encode the text. JSON can spell half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


__all__ = ["MAX_TEXT_LENGTH", "Reason", "Sample", "Shard", "Skipped", "Stream", "check_texts"]
