# SPDX-License-Identifier: BSD-3-Clause
"""Brings an index up to date with its sources: encodes new contents, and notes what changed, moved or is gone."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..data.readers.samples import Skipped
from .encoder import EncodedImage
from .engines import LocalEngine, RayEngine
from .sources import FoundImage, SourceOptions, absolute_sources, find_images
from .store import Store, StoredImage


@dataclass
class UpdateCounts:
    """What an update found."""

    new: int = 0
    """Images with new content."""
    changed: int = 0
    """Images of known names with other content."""
    moved: int = 0
    """Images of another name, which were not encoded again."""
    copied: int = 0
    """Images with the content of another one, which were not encoded again."""
    removed: int = 0
    unchanged: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """Images and records that could not be used, by kind."""

    @property
    def num_images(self) -> int:
        """Number of images that the sources have."""
        return self.new + self.changed + self.moved + self.copied + self.unchanged


Report = Callable[[str], None]
"""Takes the message of an image or record that was skipped."""
Advance = Callable[[int], None]
"""Takes a number of images that are done."""


class Update:
    """One update of an index.

    Args:
        store (`Store`):
            Files of the index, which no other process writes.
        engine (`LocalEngine` or `RayEngine`):
            The model.
        checksum (`bool`):
            Whether to compare the bytes of all image files, also of those with the size and the time of the last run.
        report, advance (`Callable`):
            Called for each skipped image, and when images are done.
    """

    def __init__(
        self, store: Store, engine: LocalEngine | RayEngine, *, checksum: bool, report: Report, advance: Advance
    ) -> None:
        self.store = store
        self.engine = engine
        self.checksum = checksum
        self.report = report
        self.advance = advance
        self.counts = UpdateCounts()
        self._is_first = True  # no image was indexed before this run
        self._new_digests: set[str] = set()  # of the batch

    def run(self, sources: Sequence[str], options: SourceOptions) -> UpdateCounts:
        """Indexes all images of the sources, then removes those that the sources no longer have."""
        self.store.start_writing()
        self._is_first = not any(self.store.query("SELECT 1 FROM images LIMIT 1"))
        images = self._images_to_read(sources, options)
        keep_states = self.store.states_file is not None
        for batch in self.engine.encode_images(images, keep_states=keep_states):
            self._write(batch)
        removed, moved = self.store.remove_unseen(absolute_sources(sources))
        self.store.commit()
        # Of two images with one content that are gone, one has moved if there is one new name.
        self.counts.moved = min(moved, self.counts.copied)
        self.counts.copied -= self.counts.moved
        self.counts.removed = removed + moved - self.counts.moved
        return self.counts

    def _images_to_read(self, sources: Sequence[str], options: SourceOptions) -> Iterator[FoundImage]:
        """Images that are new or may have changed, with the digests that the index knows for their size."""
        for item in find_images(sources, options):
            if isinstance(item, Skipped):
                self._skip(item.reason, f"{item.sample_id}: {item.detail}")
                continue
            old = self._find_old(item.stored.name)
            is_new = old is None or old.row is None
            if not self.store.mark_seen(item.stored.name, is_new=is_new):
                continue  # listed twice
            if old is not None and not is_new and not self.checksum and _has_same_file(old, item.stored):
                self._keep(old, item.stored)
                continue
            num_bytes = item.stored.bytes
            known = () if num_bytes is None else self.store.digests_of_size(num_bytes)
            yield replace(item, known_digests=known)

    def _find_old(self, name: str) -> StoredImage | None:
        """The image of a name before this run, which has each name once."""
        return None if self._is_first else self.store.find(name)

    def _keep(self, old: StoredImage, new: StoredImage) -> None:
        new = replace(new, row=old.row)
        if replace(new, digest=old.digest, width=old.width, height=old.height) != old:
            self.store.put([new])
        self._count_unchanged()

    def _count_unchanged(self) -> None:
        self.counts.unchanged += 1
        self.advance(1)

    def _write(self, batch: Sequence[EncodedImage]) -> None:
        """Adds a batch in one transaction."""
        rows = self._append_contents(batch)
        images = []
        for item in batch:
            if item.error is not None:
                images.append(replace(item.stored, error=item.error, error_kind=item.error_kind))
                self._skip(str(item.error_kind), item.error)
                continue
            row = rows[str(item.digest)]
            images.append(replace(item.stored, row=row))
            self._count(self._find_old(item.stored.name), row, item)
        self.store.put(images)
        self.store.commit()
        self.advance(len(batch))

    def _append_contents(self, batch: Sequence[EncodedImage]) -> dict[str, int]:
        """Appends the new contents of a batch, and returns the rows of all of its digests."""
        rows = self.store.rows_of_digests(list({item.digest for item in batch if item.digest is not None}))
        new: dict[str, EncodedImage] = {}
        for item in batch:
            if item.vector is not None and item.digest is not None and item.digest not in rows:
                new.setdefault(item.digest, item)
        self._new_digests = set(new)
        if new:
            first = self.store.num_rows()
            items: list[Any] = list(new.values())  # with all of their fields
            states = None if self.store.states_file is None else np.stack([item.states for item in items])
            vectors = np.stack([item.vector for item in items])
            self.store.append(list(new), [item.size for item in items], vectors, states)
            rows |= {digest: first + number for number, digest in enumerate(new)}
        return rows

    def _count(self, old: StoredImage | None, row: int, item: EncodedImage) -> None:
        known_row = None if old is None else old.row
        if known_row == row:
            self.counts.unchanged += 1
        elif known_row is not None:
            self.counts.changed += 1
        elif item.digest in self._new_digests:
            self._new_digests.remove(item.digest)  # a second one in the batch is a copy
            self.counts.new += 1
        else:
            self.counts.copied += 1

    def _skip(self, kind: str, message: str) -> None:
        self.counts.skipped[kind] += 1
        self.report(message)


def _has_same_file(old: StoredImage, new: StoredImage) -> bool:
    """Whether an image file has the size and the time of the last run. Bytes of containers are always compared."""
    return new.mtime_ns is not None and (old.bytes, old.mtime_ns) == (new.bytes, new.mtime_ns)


__all__ = ["Update", "UpdateCounts"]
