# SPDX-License-Identifier: BSD-3-Clause
"""Image-text pairs with random access: Arrow tables of all records of a source.

Images of a data set stay memory-mapped. Images of tars and Parquet files are copied once to the cache of `datasets`.
Paths, captions and ids stay in memory, except those of large lists (`large_lists.py`).
"""

import json
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from datasets.arrow_writer import ArrowWriter

from .arrow_cache import cached_table
from .coco import coco_image_id
from .hub import Table, paths_or_rows
from .parquet import ParquetFile
from .records import CAPTION_FIELDS, CaptionGroup, ImageRecord, read_captions, read_optional_id, read_path
from .scenes import SceneSource
from .sources import ACCEPTED, Reader
from .tar import TarFile
from .usable import read_usable, usable_records


_ENCODED = datasets.Image(decode=False)
_STORED = datasets.Features(
    {"image": _ENCODED, "captions": datasets.List(datasets.Value("string")), "ids": datasets.Value("string")}
)


@dataclass(frozen=True)
class ImageTable:
    """The images of a source with their captions and ids, one row per image."""

    images: Dataset
    captions: list[list[str]]
    image_ids: list[int | str | None]
    places: list[int | str]  # full path, or position in the source; unique for each image
    names: list[int | str]  # name of the image in results

    def with_captions(self) -> Dataset:
        """One row per caption, with each image stored once.

        Concatenates one copy of the table per caption rank, which share the image column, and selects the rows in
        order.
        """
        images = self._with_ids()
        depth = max(map(len, self.captions))
        stacks = [
            images.add_column("caption", [own[rank] if rank < len(own) else "" for own in self.captions])
            for rank in range(depth)
        ]
        pairs = datasets.concatenate_datasets(stacks).select_columns(["image", "caption", "image_id", "source_id"])
        if depth == 1:
            return pairs
        num_rows = len(self.captions)
        return pairs.select(
            [rank * num_rows + row for row, own in enumerate(self.captions) for rank in range(len(own))]
        )

    def without_captions(self) -> Dataset:
        """One row per image."""
        images = self._with_ids()
        first_rows = {image_id: row for row, image_id in reversed(list(enumerate(images["image_id"][:])))}
        return images if len(first_rows) == len(images) else images.select(sorted(first_rows.values()))

    def _with_ids(self) -> Dataset:
        images = self.images.add_column("image_id", _number(self.image_ids))
        return images.add_column("source_id", _source_ids(self.image_ids, self.names))


def read_images(readers: Sequence[Reader], *, is_joined: bool) -> ImageTable:
    """Reads all images. `is_joined` is true for several sources, because their image ids may clash."""
    tables = [_read(reader) for reader in readers]
    if not any(len(table.images) for table in tables):
        raise no_records_error(readers)
    tables = [table for table in tables if len(table.images)]
    if len({str(table.images.features) for table in tables}) > 1:
        tables = [replace(table, images=table.images.cast_column("image", _ENCODED)) for table in tables]
    images = datasets.concatenate_datasets([table.images for table in tables]) if tables[1:] else tables[0].images
    captions, image_ids, places, names = (
        [value for table in tables for value in getattr(table, field)]
        for field in ("captions", "image_ids", "places", "names")
    )
    return ImageTable(images, captions, places if is_joined or None in image_ids else image_ids, places, names)


def no_records_error(readers: Sequence[Reader]) -> ValueError:
    """The error for files without records."""
    others = " and others" if readers[1:] else ""
    return ValueError(f"There are no records in {_described(readers[0])}{others}. Pass {ACCEPTED}.")


def group_captions(pairs: Dataset | Sequence[Mapping[str, Any]]) -> Sequence[CaptionGroup]:
    """Groups pairs by image, for evaluation, in the order of the first caption of each image.

    Maps records `{"image", "caption", "image_id"}` to items `{"image", "captions", "image_id"}`, where `image_id` is
    the `source_id` of the pairs if they have one. Images are fetched on access.

    Example:
        >>> pairs = [{"image": "a.jpg", "caption": text, "image_id": 7} for text in ("a cat", "an animal")]
        >>> list(group_captions(pairs))
        [{'image': 'a.jpg', 'captions': ['a cat', 'an animal'], 'image_id': 7}]
    """
    return _CaptionGroups(pairs)


class _CaptionGroups(Sequence):
    """View of pairs by image. Only the captions are in memory."""

    def __init__(self, pairs: Dataset | Sequence[Mapping[str, Any]]) -> None:
        self.pairs = pairs
        self.captions: dict[int, list[str]] = {}
        self.first_rows: list[int] = []
        for row, (image_id, caption) in enumerate(_ids_and_captions(pairs)):
            if image_id not in self.captions:
                self.captions[image_id] = []
                self.first_rows.append(row)
            self.captions[image_id].append(caption)

    def __len__(self) -> int:
        return len(self.first_rows)

    def __getitem__(self, i: int) -> CaptionGroup:
        record = self.pairs[self.first_rows[operator.index(i)]]
        image_id = record["image_id"]
        own_id = record.get("source_id", image_id)
        return {"image": record["image"], "captions": self.captions[image_id], "image_id": own_id}


def _ids_and_captions(pairs: Dataset | Sequence[Mapping[str, Any]]) -> Iterable[tuple[int, str]]:
    if isinstance(pairs, Dataset):
        return zip(pairs["image_id"][:], pairs["caption"][:], strict=True)
    return ((record["image_id"], record["caption"]) for record in pairs)


# Reading


def _read(reader: Reader) -> ImageTable:
    if isinstance(reader, Table):
        return _read_table(reader)
    if isinstance(reader, (TarFile, ParquetFile)):
        return _read_stored(reader)
    records = list(_usable(reader))
    content: list[Any] = [record.image for record in records]
    features = None
    if any(isinstance(image, bytes) for image in content):
        content, features = [{"bytes": image} for image in content], datasets.Features({"image": _ENCODED})
    return ImageTable(
        images=Dataset.from_dict({"image": content}, features=features),
        captions=[record.captions for record in records],
        image_ids=[record.image_id for record in records],
        places=[_place(reader, record.image, record.image_id, record.key) for record in records],
        names=[name_image(record.image_id, record.key if record.path is None else record.path) for record in records],
    )


def _usable(reader: Reader) -> Iterator[ImageRecord]:
    return usable_records(reader.records(), _described(reader))


def _described(reader: Reader) -> str:
    return reader.name if isinstance(reader, Table | SceneSource) else str(reader.path)


def _read_table(table: Table) -> ImageTable:
    name = f"data set {table.name}"
    dataset = table.columns()
    own_paths = dataset.select_columns("image")
    has_paths = own_paths.features["image"] == datasets.Value("string")
    paths = own_paths["image"][:] if has_paths else list(paths_or_rows(own_paths))
    text_columns = [column for column in (*CAPTION_FIELDS, "image_id") if column in dataset.column_names]
    texts = dataset.select_columns(text_columns).to_list() if text_columns else [{}] * len(dataset)

    def read(row: int, where: str) -> tuple[int, list[str], int | str | None, int | str]:
        captions = read_captions(texts[row], where, required=table.needs_captions)
        place = paths[row]
        if has_paths or isinstance(place, str):
            place = table.root.join(read_path({"image": place}, "image", where), where)
        return row, captions, read_optional_id(texts[row], "image_id", where), place

    usable = list(read_usable(range(len(dataset)), read, name))
    rows, captions, image_ids, places = map(list, zip(*usable, strict=True)) if usable else ([], [], [], [])
    images = Dataset.from_dict({"image": places}) if has_paths else own_paths.select(rows)
    names = [name_image(image_id, paths[row]) for row, image_id in zip(rows, image_ids, strict=True)]
    return ImageTable(images, captions, image_ids, places, names)


def _read_stored(reader: TarFile | ParquetFile) -> ImageTable:
    stored = _store(reader)
    ids = list(map(json.loads, stored["ids"][:]))
    images = stored.select_columns("image")
    paths = images.flatten()["image.path"][:]
    image_ids = [image_id for image_id, _ in ids]
    places = [_place(reader, b"" if path is None else path, *own) for path, own in zip(paths, ids, strict=True)]
    if None not in paths:
        images = Dataset.from_dict({"image": paths})
    names = [
        name_image(image_id, key if path is None else path) for path, (image_id, key) in zip(paths, ids, strict=True)
    ]
    return ImageTable(images, stored["captions"][:], image_ids, places, names)


def _store(reader: TarFile | ParquetFile) -> Dataset:
    """The records of a file as an Arrow file."""

    def write(path: Path) -> None:
        with ArrowWriter(features=_STORED, path=str(path), writer_batch_size=100) as writer:
            for record in _join_neighbours(_usable(reader)):
                is_path = isinstance(record.image, str)
                image = {"bytes": None if is_path else record.image, "path": record.image if is_path else None}
                ids = json.dumps([record.image_id, record.key])
                writer.write({"image": image, "captions": record.captions, "ids": ids})
            writer.finalize()

    return cached_table([reader], write)


def _join_neighbours(records: Iterable[ImageRecord]) -> Iterator[ImageRecord]:
    """Joins consecutive records with the same id and image, so that an image is stored once."""
    joined: ImageRecord | None = None
    for record in records:
        if (
            joined
            and record.image_id is not None
            and (record.image_id, record.image) == (joined.image_id, joined.image)
        ):
            joined = replace(joined, captions=joined.captions + record.captions)
            continue
        if joined:
            yield joined
        joined = record
    if joined:
        yield joined


# Ids


def _place(reader: Reader, image: bytes | str, image_id: int | str | None, key: int | str) -> str:
    return image if isinstance(image, str) else f"{reader.name}/{key if image_id is None else image_id}"


def name_image(image_id: int | str | None, path: str | int) -> int | str:
    """The image's id, else COCO's number in its path, else its path or row."""
    if image_id is not None:
        return image_id
    coco_id = coco_image_id(path) if isinstance(path, str) else None
    return path if coco_id is None else coco_id


def _number(image_ids: Sequence[int | str]) -> list[int]:
    """The ids themselves if they are non-negative integers, otherwise numbers from 0."""
    if all(isinstance(image_id, int) and image_id >= 0 for image_id in image_ids):
        return list(image_ids)
    numbers: dict[int | str, int] = {}
    return [numbers.setdefault(image_id, len(numbers)) for image_id in image_ids]


def _source_ids(image_ids: Sequence[int | str], names: Sequence[int | str]) -> Sequence[int | str]:
    """The first name of each image, or the ids themselves if two images share a name."""
    name_of: dict[int | str, int | str] = {}
    for image_id, name in zip(image_ids, _of_one_type(names), strict=True):
        name_of.setdefault(image_id, name)
    is_clear = len(set(name_of.values())) == len(name_of)
    return [name_of[image_id] for image_id in image_ids] if is_clear else _of_one_type(image_ids)


def _of_one_type(ids: Sequence[int | str]) -> Sequence[int | str]:
    """The ids with one type for a column: text, unless all are numbers."""
    return ids if all(isinstance(own, int) for own in ids) else list(map(str, ids))


__all__ = ["ImageTable", "group_captions", "name_image", "no_records_error", "read_images"]
