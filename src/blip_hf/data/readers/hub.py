# SPDX-License-Identifier: BSD-3-Clause
"""Data sets of `datasets`: objects, folders of `save_to_disk`, and names on the Hub."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeGuard

import datasets
from datasets import Dataset, DatasetDict

from .image_root import ImageRoot
from .parquet import ROWS_PER_READ, find_columns, read_row
from .records import RecordStream
from .samples import Shard, Skipped, Stream, cut_rows


HUB_PREFIX = "hf://datasets/"
"""Starts the name of a data set on the Hub. Other text is never sent there, since it may be a mistyped path."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_FILE_SUFFIX = re.compile(r"\.[A-Za-z]\w*")  # of a file; `.5` in `owner/name-1.5` is a version


@dataclass(frozen=True)
class Table:
    """A data set. Its images stay memory-mapped."""

    dataset: Dataset
    name: str
    root: ImageRoot
    needs_captions: bool = True

    def records(self) -> RecordStream:
        """Records and skipped ones, in order."""
        return self._read(0, len(self.dataset), strict=True)

    def shards(self, shard_size: int) -> list[Shard]:
        """Shards of `shard_size` rows."""
        self.columns()
        return [
            Shard(f"{self.name}-{number:05d}", partial(self._stream, start, stop), partial(int, stop - start))
            for number, (start, stop) in enumerate(cut_rows(len(self.dataset), shard_size))
        ]

    def columns(self) -> Dataset:
        """The required columns with standard names, and images that are not decoded."""
        described = f"data set {self.dataset.info.dataset_name or self.name}"
        names = find_columns(self.dataset.column_names, f"The {described}", needs_captions=self.needs_captions)
        dataset = self.dataset.with_format(None).select_columns(list(names.values()))
        dataset = dataset.rename_columns({column: name for name, column in names.items() if column != name})
        if not _is_image_or_path(feature := dataset.features["image"]):
            raise ValueError(
                f"The {described} has {feature} in the column 'image', expected `datasets.Image()`, encoded bytes or"
                " paths. Use `cast_column`."
            )
        if feature == datasets.Value("string"):
            return dataset
        return dataset.cast_column("image", datasets.Image(decode=False))

    def _stream(self, start: int, stop: int) -> Stream:
        for item in self._read(start, stop, strict=False):
            yield from [item] if isinstance(item, Skipped) else item.samples()

    def _read(self, start: int, stop: int, *, strict: bool) -> RecordStream:
        dataset = self.columns()
        for first in range(start, min(stop, len(dataset)), ROWS_PER_READ):
            rows = range(first, min(first + ROWS_PER_READ, stop, len(dataset)))
            for row, raw in zip(rows, dataset.select(rows).to_list(), strict=True):
                where = f"data set {self.name}, record {row}" if strict else None
                yield read_row(raw, row, self.name, self.root, self.needs_captions, where)


def is_hub_name(source: object) -> TypeGuard[str]:
    """Whether a source is `hf://datasets/OWNER/NAME`."""
    return (
        isinstance(source, str)
        and source.startswith(HUB_PREFIX)
        and could_be_hub_name(source.removeprefix(HUB_PREFIX))
    )


def could_be_hub_name(source: str) -> bool:
    """Whether a text can be the name of a data set on the Hub, and does not look like a path."""
    is_name = _HUB_NAME.fullmatch(source) and not _FILE_SUFFIX.fullmatch(Path(source).suffix)
    return bool(is_name) and not ("/" in source and Path(source).parts[0] and Path(source).parent.exists())


def load_from_hub(source: str, split: str) -> Dataset:
    """Loads a data set by its name with `hf://datasets/`."""
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # counts are sent to s3.amazonaws.com, for local data too
    try:
        return datasets.load_dataset(source.removeprefix(HUB_PREFIX), split=split)
    except (FileNotFoundError, ConnectionError) as error:
        raise ValueError(f"{source} cannot be loaded from the Hub ({error}).") from error


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    names = datasets.config.DATASETDICT_JSON_FILENAME, datasets.config.DATASET_STATE_JSON_FILENAME
    return any((folder / name).is_file() for name in names)


def pick_split(dataset: Dataset | DatasetDict, split: str) -> Dataset:
    """The data set itself, or a split of several."""
    if isinstance(dataset, Dataset):
        return dataset
    if split not in dataset:
        raise ValueError(f"There is no split {split!r}; pass split= one of {', '.join(map(repr, dataset))}.")
    return dataset[split]


def paths_or_rows(images: Dataset) -> Sequence[int | str]:
    """Unique keys of undecoded images: their paths, or row numbers if one is stored as bytes."""
    columns = images.flatten()
    # The path of an image stored as bytes is only a name and may not be unique.
    has_only_paths = columns.data["image.bytes"].null_count == len(columns.data)
    return columns["image.path"] if has_only_paths else range(len(images))


def _is_image_or_path(feature: object) -> bool:
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, datasets.Image) or feature in (
        datasets.Value("string"),
        datasets.Value("binary"),
        datasets.Value("large_binary"),
    )


__all__ = [
    "HUB_PREFIX",
    "Table",
    "could_be_hub_name",
    "is_hub_name",
    "is_saved",
    "load_from_hub",
    "paths_or_rows",
    "pick_split",
]
