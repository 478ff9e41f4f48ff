# SPDX-License-Identifier: BSD-3-Clause
"""Streams of image-text samples that nothing in the data can stop: what is broken comes out as a fault, and counts.

A shard is read again whenever it is asked for its samples, one at a time, so that memory holds one of them however large
the data.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from itertools import groupby
from typing import Literal

from PIL import Image

from ...image_utils import is_fault_of_machine, open_image
from ..text import pre_caption


Reason = Literal["unreadable_image", "truncated_tar", "empty_text", "huge_text", "huge_image", "bad_record"]

MAX_TEXT_LENGTH = 4096
"""Characters of the longest text that is taken."""
MAX_IMAGE_BYTES = 2**28
"""Bytes of the largest image that is read, as it is encoded."""
MAX_IMAGE_PIXELS = 2**26
"""Pixels of the largest image that is decoded: some 200 MB in RGB, below what makes Pillow warn."""


@dataclass(frozen=True)
class Sample:
    """An image with the texts that came with it.

    Args:
        sample_id (`str`):
            What it is called: unique within its source, and the same at each reading.
        image (`bytes` or `str`):
            The image as it is encoded, or its path.
        texts (`tuple[str, ...]`):
            Its texts as they are written, at least one.
        image_id (`str`):
            What texts of the same image have in common.
    """

    sample_id: str
    image: bytes | str
    texts: tuple[str, ...]
    image_id: str

    def open_image(self) -> Image.Image:
        """The image, decoded and upright in RGB.

        Raises:
            UnreadableImageError: If it turns out to be broken behind its header.
        """
        return open_image(self.image, name=f"of {self.sample_id}")


@dataclass(frozen=True)
class Skipped:
    """Something that was left out, and why.

    Args:
        sample_id (`str`):
            The sample, or the shard where no sample could be told.
        reason (`str`):
            One of `"unreadable_image"`, `"truncated_tar"`, `"empty_text"` (no words left once normalised),
            `"huge_text"` (over `MAX_TEXT_LENGTH`), `"huge_image"` (over `MAX_IMAGE_BYTES` or `MAX_IMAGE_PIXELS`) and
            `"bad_record"`.
        detail (`str`):
            What was found, for a person.
    """

    sample_id: str
    reason: Reason
    detail: str


Stream = Iterator[Sample | Skipped]


@dataclass(frozen=True)
class Shard:
    """A part of a source that is read, scored and written as one.

    Args:
        name (`str`):
            Its name, which is good for files, and the same whenever the source is.
        read (`Callable[[], Iterator]`):
            Starts reading from the beginning. It gives one sample a record, with its image not yet looked at.
    """

    name: str
    read: Callable[[], Stream]

    def samples(self, *, checks_images: bool = True) -> Stream:
        """Its samples and faults in order, neighbours of the same id and image as one sample, each id once.

        Of an image only the header is read here, so [`Sample.image`] may still raise.

        Args:
            checks_images (`bool`, *optional*, defaults to `True`):
                Whether images are looked at; where scores say which samples are sound, there is no need to.

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
                fault = _fault_of_image(item) if checks_images else None
                if fault is not None:
                    yield fault
                    continue
            yield item


def check_texts(sample_id: str, image: bytes | str, texts: Iterable[str], image_id: str) -> Stream:
    """A sample with those of its texts that are fit for use, and a fault for each of the others, in their order.

    It comes in pieces where a fault is in between, which [`Shard.samples`] puts together. A sample of which no text is
    left is left out too, and so is one whose id or path no table can hold.

    Args:
        sample_id (`str`):
            Its id.
        image (`bytes` or `str`):
            The image or its path.
        texts (iterable of `str`):
            Its texts.
        image_id (`str`):
            Id of the image.

    Yields:
        `Sample` or `Skipped`: the next one.
    """
    for name, value in (("image_id", image_id), ("path", image)):
        if isinstance(value, str) and not _is_unicode(value):
            yield Skipped(sample_id, "bad_record", f"its {name} is no Unicode: {value!a}")
            return
    for fault, run in groupby(texts, key=partial(_fault_of_text, sample_id)):
        if fault is None:
            yield Sample(sample_id, image, tuple(text.strip() for text in run), image_id)
        else:
            yield from (fault for _ in run)


def _merge_neighbours(items: Stream) -> Stream:
    held: Sample | None = None
    faults: list[Skipped] = []  # since then, which may be of further texts of the same image
    for item in items:
        if isinstance(item, Skipped):
            faults.append(item)
        elif held is not None and (item.image_id, item.image) == (held.image_id, held.image):
            held = replace(held, texts=held.texts + item.texts)
        else:
            yield from [held, *faults] if held else faults
            held, faults = item, []
    yield from [held, *faults] if held else faults


def _fault_of_text(sample_id: str, text: str) -> Skipped | None:
    if len(text) > MAX_TEXT_LENGTH:
        return Skipped(sample_id, "huge_text", f"{len(text)} characters, at most {MAX_TEXT_LENGTH} are taken")
    if not pre_caption(text).strip():
        return Skipped(sample_id, "empty_text", f"{text!r} has no words left")
    if not _is_unicode(text):
        return Skipped(sample_id, "bad_record", f"its text is no Unicode: {text!a}")
    return None


def _is_unicode(text: str) -> bool:
    """Whether it is what UTF-8 can hold; JSON can spell half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fault_of_image(sample: Sample) -> Skipped | None:
    try:
        is_path = isinstance(sample.image, str)
        num_bytes = os.path.getsize(sample.image) if is_path else len(sample.image)
        if num_bytes > MAX_IMAGE_BYTES:
            return Skipped(sample.sample_id, "huge_image", f"{num_bytes} bytes, at most {MAX_IMAGE_BYTES} are taken")
        with Image.open(sample.image if is_path else BytesIO(sample.image)) as header:
            width, height = header.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return Skipped(sample.sample_id, "huge_image", str(error))
    except Exception as error:
        if is_fault_of_machine(error):
            raise
        # Decoders raise whatever they stumble over in a broken file.
        return Skipped(sample.sample_id, "unreadable_image", f"{type(error).__name__}: {error}")
    if width * height > MAX_IMAGE_PIXELS:
        detail = f"{width} x {height} pixels, at most {MAX_IMAGE_PIXELS} in all are taken"
        return Skipped(sample.sample_id, "huge_image", detail)
    return None


__all__ = [
    "MAX_IMAGE_BYTES",
    "MAX_IMAGE_PIXELS",
    "MAX_TEXT_LENGTH",
    "Reason",
    "Sample",
    "Shard",
    "Skipped",
    "Stream",
    "check_texts",
]
