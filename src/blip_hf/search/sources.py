# SPDX-License-Identifier: BSD-3-Clause
"""Images of any source of the readers, one at a time, and the bytes of an image that was found earlier."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.readers.folder import ImageFolder
from ..data.readers.lists import ListFile
from ..data.readers.parquet import ParquetFile
from ..data.readers.records import ImageRecord
from ..data.readers.samples import Skipped
from ..data.readers.sources import Reader, make_absolute, open_source
from ..data.readers.tar import TarFile
from .store import StoredImage


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How sources are read, as in [`~blip_hf.data.readers.load_pairs`]."""

    image_root: str | None = None
    allow_outside: bool = False
    split: str = "train"


@dataclass(frozen=True)
class FoundImage:
    """An image of a source. `image` is its path or its bytes."""

    stored: StoredImage
    image: str | bytes
    known_digests: tuple[str, ...] = ()
    """Digests of the contents of the same size in the index: one of these need not be encoded."""

    def __str__(self) -> str:
        return self.stored.name


def find_images(sources: Sequence[str], options: SourceOptions) -> Iterator[FoundImage | Skipped]:
    """Images of sources in order, without opening one; records that cannot be used are `Skipped`.

    Raises:
        ValueError: If a source does not exist or does not fit.
    """
    for source in absolute_sources(sources):
        for reader in _open(source, options):
            place = str(reader.path) if isinstance(reader, (ImageFolder, ListFile, ParquetFile, TarFile)) else source
            for record in reader.records():
                yield record if isinstance(record, Skipped) else _found(record, source, place)


def absolute_sources(sources: Sequence[str]) -> list[str]:
    """Sources with absolute paths, each once."""
    return list(dict.fromkeys(make_absolute(source) for source in sources))


def _open(source: str, options: SourceOptions) -> list[Reader]:
    return open_source(
        source,
        image_root=options.image_root,
        allow_outside=options.allow_outside,
        split=options.split,
        needs_captions=False,
    )


def _found(record: ImageRecord, source: str, place: str) -> FoundImage | Skipped:
    fields: dict[str, Any] = {
        "source": source,
        "caption": "\n".join(record.captions) or None,
        "image_id": None if record.image_id is None else str(record.image_id),
    }
    if isinstance(record.image, bytes):
        name = f"{place}/{record.key}"
        fields |= {"container": place, "key": json.dumps(record.key), "bytes": len(record.image)}
    else:
        name = os.path.abspath(record.image)
        try:
            state = os.stat(name)
            fields |= {"bytes": state.st_size, "mtime_ns": state.st_mtime_ns}
        except (OSError, ValueError):
            pass  # the error of opening it says more
    try:
        for text in (name, *filter(None, fields.values())):
            str(text).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return Skipped(record.sample_id, "bad_record", "its path, id or caption is not valid Unicode")
    return FoundImage(StoredImage(name=name, **fields), record.image)


def reopen_images(images: Sequence[StoredImage], options: SourceOptions) -> dict[str, str | bytes]:
    """The path or the bytes of each image by name. A container is read from its start until it has given all of its images.

    Images that are gone are missing from the result.
    """
    found: dict[str, str | bytes] = {image.name: image.name for image in images if image.container is None}
    wanted: dict[tuple[str, str], set[str]] = {}
    for image in images:
        if image.container is not None:
            wanted.setdefault((image.source, image.container), set()).add(image.name)
    for (source, container), names in wanted.items():
        place = container if Path(container).is_file() else source
        found |= _load_from(place, container, names, options)
    return found


def _load_from(place: str, container: str, names: set[str], options: SourceOptions) -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        records = (record for reader in _open(place, options) for record in reader.records())
        for record in records:
            if isinstance(record, Skipped):
                continue
            name = f"{container}/{record.key}"
            if name in names and isinstance(record.image, bytes):
                found[name] = record.image
                if len(found) == len(names):
                    break
    except ValueError:  # the container is gone
        pass
    return found


__all__ = ["FoundImage", "SourceOptions", "absolute_sources", "find_images", "reopen_images"]
