# SPDX-License-Identifier: BSD-3-Clause
"""Files at fsspec addresses, such as `s3://bucket/web-00000.tar`: their names, versions and listings."""

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeGuard
from urllib.parse import urlsplit

import fsspec

from ...image_files import is_visible
from .remote_stream import RemoteReadError, RemoteStream, file_info, retry, version_of


HEAD_BYTES = 2**16
"""Number of bytes that are hashed of a file whose server tells no version."""
BLOCK_BYTES = 2**23
"""Number of bytes of a request."""
NUM_REQUESTS = 16
"""Number of requests at once, for the sizes or versions of many files."""
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://.+")
_HUB_PROTOCOL = "hf"  # has data sets by name only


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address, with those methods of `Path` that readers use."""

    address: str

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        """The name of the file, without the query of a URL."""
        return self.as_path().name

    @property
    def suffix(self) -> str:
        """The last suffix of the name, with the dot."""
        return self.as_path().suffix

    def as_path(self) -> PurePosixPath:
        """The address as an absolute path, to compare it with others."""
        protocol, _, path = self.address.partition("://")
        if protocol in ("http", "https"):
            path = path.partition("?")[0].partition("#")[0]
        return PurePosixPath(f"/{protocol}/{path.lstrip('/')}")

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """The file for sequential reads, in blocks. Raises `RemoteReadError`."""
        return io.BufferedReader(self.open_ranges(), BLOCK_BYTES)

    def open_ranges(self) -> RemoteStream:
        """The file for random access, without buffer. Raises `RemoteReadError`."""
        return RemoteStream(self.address)

    def version(self) -> str:
        """Hash of what the file system tells of the file: size, and entity tag or time. Raises `RemoteReadError`."""
        info = file_info(self.address)
        content = version_of(info)
        if content == version_of({"size": info.get("size")}):
            with self.open() as file:
                content += file.read(HEAD_BYTES).hex()
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def is_remote(source: object) -> TypeGuard[str]:
    """Whether a source is an fsspec address other than `hf://`."""
    match = _ADDRESS.fullmatch(source) if isinstance(source, str) else None
    return match is not None and match[1] != _HUB_PROTOCOL


def find_remote_files(address: str, suffixes: tuple[str, ...]) -> list[RemoteFile]:
    """The file of an address, or the visible files of a folder or pattern with one of these suffixes, sorted.

    Raises `ValueError` if the protocol needs a package, or there is no such file.
    """
    filesystem, path = _open_filesystem(address)
    file = RemoteFile(filesystem.unstrip_protocol(path))
    if file.name.endswith(suffixes) and not _has_wildcard(address):
        return [file]
    files = [RemoteFile(filesystem.unstrip_protocol(each)) for each in _list(filesystem, path, address)]
    return [each for each in files if each.name.endswith(suffixes) and is_visible(each.name)]


def check_exists(file: RemoteFile) -> None:
    """Raises `ValueError` if there is no such file."""
    try:
        file_info(file.address)
    except RemoteReadError as error:
        raise ValueError(str(error)) from error


def _open_filesystem(address: str) -> tuple[fsspec.AbstractFileSystem, str]:
    protocol = address.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise ValueError(
            f"{address} needs a package that is not installed: {error}. Install it with pip, or mount or copy the files."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{address} cannot be opened by fsspec ({error}). Pass a protocol that it knows, such as s3://, gs:// or"
            f" https://, instead of {protocol}://, or the path of local files."
        ) from error


def _list(filesystem: fsspec.AbstractFileSystem, path: str, address: str) -> list[str]:
    """The sorted paths that match a pattern or lie in a folder."""

    def list_once() -> list[str]:
        filesystem.invalidate_cache()
        return filesystem.glob(path) if _has_wildcard(address) else filesystem.ls(path, detail=False)

    try:
        return sorted(set(retry(list_once, address)))
    except RemoteReadError as error:
        raise ValueError(str(error)) from error


def _has_wildcard(address: str) -> bool:
    """Whether an address is a pattern. In a URL `?` starts a query, and the host may have brackets."""
    parts = urlsplit(address)
    is_http = parts.scheme in ("http", "https")
    return bool(re.search(r"[*\[]" if is_http else r"[*?\[]", parts.path if is_http else address))


__all__ = ["BLOCK_BYTES", "HEAD_BYTES", "NUM_REQUESTS", "RemoteFile", "check_exists", "find_remote_files", "is_remote"]
