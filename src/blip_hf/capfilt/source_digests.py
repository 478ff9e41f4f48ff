# SPDX-License-Identifier: BSD-3-Clause
"""Digests of a source, so that a run is not resumed or filtered again on other data."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..data.readers import Shard, cut_shards
from ..data.readers.folder import ImageFolder
from ..data.readers.hub import Table
from ..data.readers.lists import ListFile
from ..data.readers.parquet import ParquetFile
from ..data.readers.remote import NUM_REQUESTS, RemoteFile
from ..data.readers.sidecars import SIDECAR_SUFFIXES
from ..data.readers.sources import Reader, open_source
from ..data.readers.tar import TarFile
from ..files import file_digest
from ..image_files import list_images
from .scores import RunFolder


HEAD_BYTES = 2**16
"""Number of bytes that are hashed of a tar or Parquet file."""

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
    remote = [reader.path for reader in readers if _is_remote(reader)]
    with ThreadPoolExecutor(NUM_REQUESTS) as pool:
        digests |= dict(zip(map(str, remote), pool.map(RemoteFile.version, remote), strict=True))
    for reader in readers:
        if _is_remote(reader):
            continue
        if isinstance(reader, ListFile):
            digests[str(reader.path)] = file_digest(reader.path)
        elif isinstance(reader, ImageFolder):
            digests[str(reader.path)] = _listing_digest(reader.path)
        elif isinstance(reader, Table):
            digests[reader.name] = reader.dataset._fingerprint
        elif isinstance(reader, (TarFile, ParquetFile)):
            digests[str(reader.path)] = _head_digest(reader.path)
    return digests


def check_source(run: RunFolder, digests: Mapping[str, str]) -> None:
    """Raises `ValueError` if the source has changed since the run started."""
    path = run.source_digests
    if not path.is_file():
        return  # a run of an earlier version
    changes = find_changes(json.loads(path.read_text(encoding="utf-8")), digests)
    if changes:
        raise ValueError(
            f"{run.root} holds scores of other data: since the run started, {', '.join(changes)}. Restore the data, or"
            " run again with another output folder."
        )


def open_unchanged(run: RunFolder, settings: Mapping[str, Any]) -> list[Shard]:
    """Returns the shards of the source of a run. Raises `ValueError` if it has changed since the run started."""
    readers = open_source(
        settings["source"],
        image_root=settings["image_root"],
        allow_outside=settings.get("allow_outside", True),  # runs of version 0.1 opened any image
    )
    check_source(run, digest_source(readers))
    return cut_shards(readers, settings["shard_size"])


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


def _is_remote(reader: Reader) -> bool:
    return isinstance(reader, (TarFile, ParquetFile)) and isinstance(reader.path, RemoteFile)


def _head_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(b"%d " % path.stat().st_size + file.read(HEAD_BYTES)).hexdigest()[:16]


def _listing_digest(folder: Path) -> str:
    images = [folder] if folder.is_file() else list_images(folder, recursive=True)
    digest = hashlib.sha256()
    for image in images:
        for path in (image, *(image.with_suffix(suffix) for suffix in SIDECAR_SUFFIXES)):
            if path.is_file():
                digest.update(f"{path} {path.stat().st_size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


__all__ = ["HEAD_BYTES", "SourceDigests", "check_source", "digest_source", "find_changes", "open_unchanged"]
