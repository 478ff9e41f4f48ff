# SPDX-License-Identifier: BSD-3-Clause
"""The files of an index: `images.sqlite` with the images, and `vectors.f32` with a vector for each different content.

A row is the vector of a content; several images with the same bytes share it. The vectors of a batch are on the disk before
the transaction that counts them, so a process that is killed loses the batch it was working on and nothing else.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..files import DiskFullError, atomic_write
from .row_file import RowFile


DATABASE_NAME = "images.sqlite"

# `rows` counts what `vectors.f32` holds. An image without a row could not be read.
_SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE contents (row INTEGER PRIMARY KEY, digest TEXT UNIQUE, width INTEGER, height INTEGER);
CREATE TABLE images (
    name TEXT PRIMARY KEY, source TEXT, container TEXT, key TEXT, row INTEGER REFERENCES contents,
    bytes INTEGER, mtime_ns INTEGER, caption TEXT, image_id TEXT, error TEXT, error_kind TEXT
);
CREATE INDEX images_of_row ON images (row);
CREATE INDEX images_of_size ON images (bytes);
"""


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image of an index, or one that could not be read (`row` is `None`)."""

    name: str
    """The full path, or that of its tar, Parquet file or data set with its key."""
    source: str
    """The source that it was found in."""
    container: str | None = None
    """The tar, Parquet file or data set that holds its bytes; `None` for an image file."""
    key: str | None = None
    """Its key in the container, as JSON."""
    row: int | None = None
    bytes: int | None = None
    mtime_ns: int | None = None
    caption: str | None = None
    image_id: str | None = None
    error: str | None = None
    error_kind: str | None = None
    digest: str | None = None
    width: int | None = None
    height: int | None = None


_FIELDS = tuple(StoredImage.__dataclass_fields__)
_COLUMNS = _FIELDS[:-3]
_SELECT = f"SELECT {', '.join(_FIELDS)} FROM images LEFT JOIN contents USING (row)"
_TEXTS = ("name", "source", "container", "key", "caption", "image_id", "error")


class Store:
    """The files of an index in `folder`. Create one with [`Store.create`]."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / DATABASE_NAME).is_file():
            raise ValueError(f"{folder} is not an index. Pass the folder that `blip-hf index` wrote.")
        # Servers read an index in other threads than they open it.
        self._database = sqlite3.connect(folder / DATABASE_NAME, check_same_thread=False)
        # Names of files need not be UTF-8.
        self._database.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        try:
            self.settings = {name: json.loads(value) for name, value in self.query("SELECT * FROM settings")}
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{folder / DATABASE_NAME} is damaged ({error}). Build the index again with --overwrite."
            ) from error

    @classmethod
    def create(cls, folder: Path, settings: Mapping[str, Any]) -> "Store":
        """An empty index. `settings` have the `width` of vectors and the `states` shape or `None`."""
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / DATABASE_NAME) as path:
            database = sqlite3.connect(path)
            database.executescript(_SCHEMA)
            rows = [(name, json.dumps(value)) for name, value in settings.items()]
            database.executemany("INSERT INTO settings VALUES (?, ?)", rows)
            database.commit()
            database.close()
        return cls(folder)

    def close(self) -> None:
        """Closes the database."""
        self._database.close()

    # Reading

    def query(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Rows of a query."""
        with self._named_errors():
            return self._database.execute(sql, values)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Raises errors of the disk as those of files, with the path."""
        path = self.folder / DATABASE_NAME
        try:
            yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise DiskFullError(path, "space for the next batch") from error
            raise OSError(f"{path}: {error}.") from error

    @cached_property
    def vectors_file(self) -> RowFile:
        """The file of vectors."""
        return RowFile(self.folder / "vectors.f32", (self.settings["width"],), "float32")

    @cached_property
    def states_file(self) -> RowFile | None:
        """The file of image states, if the index keeps them."""
        shape = self.settings["states"]
        return None if shape is None else RowFile(self.folder / "states.f16", shape, "float16")

    def num_rows(self) -> int:
        """Number of vectors, also of removed images."""
        ((number,),) = self.query("SELECT count(*) FROM contents")
        return number

    def vectors(self) -> np.ndarray:
        """All vectors, `(rows, width)`, memory-mapped."""
        return self.vectors_file.read(self.num_rows())

    def live_rows(self, condition: str | None = None, values: Sequence[Any] = ()) -> np.ndarray:
        """Sorted rows of all images, or of those that fulfil an SQL condition, `(r,)`."""
        where = "row IS NOT NULL"
        if condition is not None:
            where = f"{where} AND {condition}"
        table = "images" if condition is None else "images JOIN contents USING (row)"  # the index alone is faster
        sql = f"SELECT DISTINCT row FROM {table} WHERE {where} ORDER BY row"
        return np.fromiter((row for (row,) in self.query(sql, values)), dtype=np.int64)

    def find(self, name: str) -> StoredImage | None:
        """The image of a name."""
        return next(map(_as_image, self.query(f"{_SELECT} WHERE name = CAST(? AS TEXT)", [_encode(name)])), None)

    def images_of(self, row: int, condition: str | None = None, values: Sequence[Any] = ()) -> list[StoredImage]:
        """The images with a content, or those of them that fulfil an SQL condition, by name."""
        found = self.query(f"{_SELECT} WHERE row = ? AND {condition or 1} ORDER BY name", [row, *values])
        return list(map(_as_image, found))

    def skipped(self) -> list[StoredImage]:
        """The images that could not be read, by name."""
        return list(map(_as_image, self.query(f"{_SELECT} WHERE row IS NULL ORDER BY name")))

    def num_images(self) -> int:
        """Number of images with a vector."""
        ((number,),) = self.query("SELECT count(*) FROM images WHERE row IS NOT NULL")
        return number

    def rows_of_digests(self, digests: Sequence[str]) -> dict[str, int]:
        """The rows of the contents that the index has."""
        places = ", ".join("?" * len(digests))
        return dict(self.query(f"SELECT digest, row FROM contents WHERE digest IN ({places})", digests))

    def digests_of_size(self, num_bytes: int) -> tuple[str, ...]:
        """Digests of the contents that images of this size had or have."""
        sql = "SELECT DISTINCT digest FROM images JOIN contents USING (row) WHERE bytes = ?"
        return tuple(digest for (digest,) in self.query(sql, [num_bytes]))

    # Writing, by one process at a time

    def start_writing(self) -> None:
        """Removes the rows of a batch that a killed process had not counted, and starts to note the images seen."""
        for file in filter(None, (self.vectors_file, self.states_file)):
            file.truncate(self.num_rows())
        self.query("CREATE TEMP TABLE IF NOT EXISTS seen (name TEXT PRIMARY KEY, is_new INTEGER) WITHOUT ROWID")
        self.query("DELETE FROM seen")
        self.commit()

    def append(
        self, digests: Sequence[str], sizes: Sequence[tuple[int, int]], vectors: np.ndarray, states: np.ndarray | None
    ) -> None:
        """Appends contents, which are counted by the next `commit`."""
        self.vectors_file.append(vectors)
        if self.states_file is not None and states is not None:
            self.states_file.append(states)
        first = self.num_rows()
        rows = [
            (first + number, digest, *size) for number, (digest, size) in enumerate(zip(digests, sizes, strict=True))
        ]
        self._database.executemany("INSERT INTO contents VALUES (?, ?, ?, ?)", rows)

    def put(self, images: Iterable[StoredImage]) -> None:
        """Adds images, or replaces those of their names."""
        places = ", ".join("CAST(? AS TEXT)" if name in _TEXTS else "?" for name in _COLUMNS)
        rows = [
            [_encode(getattr(image, name)) if name in _TEXTS else getattr(image, name) for name in _COLUMNS]
            for image in images
        ]
        with self._named_errors():
            self._database.executemany(
                f"INSERT OR REPLACE INTO images ({', '.join(_COLUMNS)}) VALUES ({places})", rows
            )

    def mark_seen(self, name: str, *, is_new: bool = False) -> bool:
        """Notes that a name exists in this run. Returns whether it is the first time."""
        sql = "INSERT OR IGNORE INTO temp.seen VALUES (CAST(? AS TEXT), ?)"
        return self._database.execute(sql, [_encode(name), is_new]).rowcount > 0

    def remove_unseen(self, sources: Iterable[str]) -> tuple[int, int]:
        """Removes the images of these sources, or inside these folders, that this run has not seen.

        Returns how many are gone, and how many moved: their content has a new name.
        """
        own = set(sources)
        unseen = self.query("SELECT name, source, row FROM images WHERE name NOT IN (SELECT name FROM temp.seen)")
        gone = [(name, row) for name, source, row in unseen if source in own or not own.isdisjoint(_folders_of(name))]
        sql = "SELECT 1 FROM images JOIN temp.seen USING (name) WHERE row = ? AND is_new"
        num_moved = sum(any(self.query(sql, [row])) for _, row in gone)
        self._database.executemany(
            "DELETE FROM images WHERE name = CAST(? AS TEXT)", [(_encode(name),) for name, _ in gone]
        )
        return len(gone) - num_moved, num_moved

    def commit(self) -> None:
        """Makes all changes since the last call permanent."""
        with self._named_errors():
            self._database.commit()


def _encode(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8", "surrogateescape")


def _folders_of(name: str) -> Iterator[str]:
    """The folders and containers that a name is inside of.

    Example:
        >>> list(_folders_of("/photos/web.tar/1.jpg"))
        ['/photos', '/photos/web.tar']
    """
    return (name[:place] for place in range(1, len(name)) if name[place] == "/")


def _as_image(values: Sequence[Any]) -> StoredImage:
    return StoredImage(**dict(zip(_FIELDS, values, strict=True)))


__all__ = ["DATABASE_NAME", "Store", "StoredImage"]
