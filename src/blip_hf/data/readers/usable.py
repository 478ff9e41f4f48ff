# SPDX-License-Identifier: BSD-3-Clause
"""Keeps the usable records of a source, and counts the skipped ones in one warning."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from transformers.utils import logging

from .image_root import OutsideFolderError
from .samples import Skipped, is_unicode


logger = logging.get_logger(__name__)

Item = TypeVar("Item")


def skipped_record(sample_id: str, error: ValueError) -> Skipped:
    """A record that cannot be read because of its fields."""
    return Skipped(sample_id, "outside_folder" if isinstance(error, OutsideFolderError) else "bad_record", str(error))


def usable_items(items: Iterable[Item | Skipped], name: str) -> Iterator[Item]:
    """The items that are not skipped. Warns about the others, or raises `ValueError` if there are no others."""
    skipped: Counter[str] = Counter()
    first, num_usable = None, 0
    for item in items:
        if isinstance(item, Skipped):
            skipped[item.reason] += 1
            first = first or item
        else:
            num_usable += 1
            yield item
    if first and not num_usable and first.reason in ("bad_record", "outside_folder"):
        raise ValueError(first.detail)
    if first:
        counts = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        logger.warning(f"{name}: skipped {counts}, the first {first.sample_id} ({first.detail.rstrip('.')}).")


def read_usable(records: Iterable[Any], read: Callable[[Any, str], Item], name: str) -> list[Item]:
    """Reads records with `read(record, where)`, which raises `ValueError` for an invalid one. Skips as `usable_items`."""

    def results() -> Iterator[Item | Skipped]:
        for number, record in enumerate(records):
            where = f"{name}, record {number}"
            try:
                item = read(record, where)
                check_unicode(item, where)
            except ValueError as error:
                yield skipped_record(f"record {number}", error)
            else:
                yield item

    return list(usable_items(results(), name))


def check_unicode(value: Any, where: str) -> None:
    """Raises `ValueError` for a record with a text that UTF-8 cannot encode, such as half of a surrogate pair."""
    if isinstance(value, str) and not is_unicode(value):
        raise ValueError(f"{where}: it has invalid Unicode: {value!a}. Correct or remove this record.")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            check_unicode(part, where)


__all__ = ["check_unicode", "read_usable", "skipped_record", "usable_items"]
