# SPDX-License-Identifier: BSD-3-Clause
"""Digests of data, so that a run is not resumed on other ones: cheap, and the same after moving the data."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import islice
from pathlib import Path

from ..files import file_digest
from ..image_files import list_images, visible_files
from .readers.folder import ImageFolder
from .readers.hub import Table
from .readers.lists import ListFile
from .readers.parquet import ParquetFile
from .readers.remote import NUM_REQUESTS, RemoteFile
from .readers.sidecars import SIDECAR_SUFFIXES
from .readers.sources import Reader, kind_of
from .readers.tar import TarFile


HEAD_BYTES = 2**16
"""Number of bytes that are hashed of a tar or Parquet file."""
NUM_LISTED = 1000
"""Number of files that are compared of a folder of images beside a list."""

SourceDigests = dict[str, str]


def digest_source(readers: Sequence[Reader]) -> SourceDigests:
    """Maps each file, folder or data set of a source to a digest.

    | source                             | digest of                                        |
    |------------------------------------|--------------------------------------------------|
    | JSON lists, annotations, metadata  | the content                                      |
    | tars, Parquet files                | the size and the first 64 KiB                    |
    | folders of images                  | names and sizes of the images and their texts    |
    | tars, Parquet files at addresses   | what the server tells: size, entity tag or time  |
    | data sets                          | the fingerprint of `datasets`                    |

    Drawn scenes have none: their name defines them.
    """
    digests: SourceDigests = {}
    remote = [
        reader.path
        for reader in readers
        if isinstance(reader, (TarFile, ParquetFile)) and isinstance(reader.path, RemoteFile)
    ]
    with ThreadPoolExecutor(NUM_REQUESTS) as pool:
        digests |= dict(zip(map(str, remote), pool.map(RemoteFile.version, remote), strict=True))
    for reader in readers:
        if isinstance(reader, ImageFolder):
            digests[str(reader.path)] = _images_digest(reader.path)
        elif isinstance(reader, Table):
            digests[reader.name] = reader.dataset._fingerprint
        elif isinstance(reader, (ListFile, TarFile, ParquetFile)) and isinstance(reader.path, Path):
            digests[str(reader.path)] = digest_file(reader.path)
    return digests


def digest_file(path: Path) -> str:
    """Hashes the size and the first 64 KiB of a tar or Parquet file, and the content of another one."""
    stat = path.stat()
    return _file_digest(path, stat.st_size, stat.st_mtime_ns)


def digest_listing(folder: Path) -> str:
    """Hashes names and sizes of the first files of a folder, in the order of their names in each subfolder."""
    files = islice(_sorted_files(folder), NUM_LISTED)
    return _hash_lines(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in files)


def find_changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Says what changed between two digests of a source, such as "web.json has changed"."""
    verbs = {
        "has changed": [name for name in old if name in new and new[name] != old[name]],
        "is gone": [name for name in old if name not in new],
        "is new": [name for name in new if name not in old],
    }
    return [
        f"{names[0]} {verb}" + (f" (and {len(names) - 1} others)" if len(names) > 1 else "")
        for verb, names in verbs.items()
        if names
    ]


@cache
def _file_digest(path: Path, size: int, mtime_ns: int) -> str:
    """The digest of a file, which is read once by a process unless its size or time changes."""
    if kind_of(path) not in ("tar", "parquet"):
        return file_digest(path)
    with path.open("rb") as file:
        return hashlib.sha256(b"%d " % size + file.read(HEAD_BYTES)).hexdigest()[:16]


def _images_digest(folder: Path) -> str:
    images = [folder] if folder.is_file() else list_images(folder, recursive=True)
    files = (path for image in images for path in (image, *(image.with_suffix(suffix) for suffix in SIDECAR_SUFFIXES)))
    return _hash_lines(
        f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in files if path.is_file()
    )


def _sorted_files(folder: Path) -> Iterable[Path]:
    yield from sorted(path for path in visible_files(folder, recursive=False) if path.is_file())
    for entry in sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()):
        yield from _sorted_files(entry)


def _hash_lines(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


__all__ = [
    "HEAD_BYTES",
    "NUM_LISTED",
    "SourceDigests",
    "digest_file",
    "digest_listing",
    "digest_source",
    "find_changes",
]
