# SPDX-License-Identifier: BSD-3-Clause
"""Keeps the usable records of a source, and counts the skipped ones in one warning."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from transformers.utils import logging

from ..skips import SkipCounts
from .image_root import OutsideFolderError
from .records import ImageRecord
from .samples import Skipped, is_unicode


logger = logging.get_logger(__name__)

Item = TypeVar("Item")


@dataclass(frozen=True)
class LoadedFile:
    """Counts of the records of a file or data set, and the details of the first skipped one."""

    name: str
    counts: SkipCounts
    first: str = ""

    def report(self) -> None:
        """Warns about skipped records, and adds the counts to those of `recorded_files`."""
        if self.counts.total:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts.by_reason.items())
            logger.warning(f"{self.name}: skipped {reasons}, the first {self.first}.")
        for files in _recorders.get():
            files.append(self)


_recorders: ContextVar[tuple[list[LoadedFile], ...]] = ContextVar("recorders", default=())


@contextmanager
def recorded_files() -> Iterator[list[LoadedFile]]:
    """Yields a list that gets the counts of each file that is loaded within the block."""
    files: list[LoadedFile] = []
    token = _recorders.set((*_recorders.get(), files))
    try:
        yield files
    finally:
        _recorders.reset(token)


def skipped_record(sample_id: str, error: ValueError) -> Skipped:
    """A record that cannot be read because of its fields."""
    return Skipped(sample_id, "outside_folder" if isinstance(error, OutsideFolderError) else "bad_record", str(error))


def usable_items(items: Iterable[Item | Skipped], name: str) -> Iterator[Item]:
    """The items that are not skipped. Warns about the others, or raises `ValueError` if there are no others."""
    counts = SkipCounts()
    first: Skipped | None = None
    for item in items:
        if isinstance(item, Skipped):
            counts.add(item.reason, item.sample_id)
            first = first or item
        else:
            counts.num_usable += 1
            yield item
    if first and not counts.num_usable and first.reason in ("bad_record", "outside_folder"):
        raise ValueError(first.detail)
    LoadedFile(name, counts, f"{first.sample_id} ({first.detail.rstrip('.')})" if first else "").report()


def usable_records(records: Iterable[ImageRecord | Skipped], name: str) -> Iterator[ImageRecord]:
    """The usable records of a reader, without those whose texts an Arrow table cannot hold."""

    def items() -> Iterator[ImageRecord | Skipped]:
        for item in records:
            if isinstance(item, ImageRecord) and (text := _invalid_text(item)) is not None:
                item = Skipped(item.sample_id, "bad_record", f"{item.sample_id}: it has invalid Unicode: {text!a}")
            yield item

    return usable_items(items(), name)


def _invalid_text(record: ImageRecord) -> str | None:
    """The first text of a record that UTF-8 cannot encode, such as a file name in another encoding."""
    values = (record.image, record.path, record.key, record.image_id, *record.captions)
    return next((value for value in values if isinstance(value, str) and not is_unicode(value)), None)


def read_usable(records: Iterable[Any], read: Callable[[Any, str], Item], name: str) -> Iterator[Item]:
    """Reads records with `read(record, where)`, which raises `ValueError` for an invalid one. Skips as `usable_items`."""
    return usable_items(read_or_skip(records, read, name), name)


def read_or_skip(records: Iterable[Any], read: Callable[[Any, str], Item], name: str) -> Iterator[Item | Skipped]:
    """Same as [`read_usable`], with the skipped records."""
    for number, record in enumerate(records):
        where = f"{name}, record {number}"
        try:
            item = read(record, where)
            check_unicode(item, where)
        except ValueError as error:
            yield skipped_record(f"record {number}", error)
        else:
            yield item


def check_unicode(value: Any, where: str) -> None:
    """Raises `ValueError` for a record with a text that UTF-8 cannot encode, such as half of a surrogate pair."""
    if isinstance(value, str) and not is_unicode(value):
        raise ValueError(f"{where}: it has invalid Unicode: {value!a}. Correct or remove this record.")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            check_unicode(part, where)


__all__ = [
    "LoadedFile",
    "check_unicode",
    "read_or_skip",
    "read_usable",
    "recorded_files",
    "skipped_record",
    "usable_items",
    "usable_records",
]
