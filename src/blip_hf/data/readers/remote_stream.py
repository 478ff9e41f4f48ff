# SPDX-License-Identifier: BSD-3-Clause
"""Reads of fsspec addresses that survive lost connections."""

import errno
import io
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import fsspec
from transformers.utils import logging


logger = logging.get_logger(__name__)

WAITS = (1, 2, 4, 8)
"""Seconds before each repeated attempt."""
_PERMANENT = (PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError, ImportError)
_MISSING_STATUS = (401, 403, 404, 410)  # fsspec reports each failure of HTTP as a missing file
_VERSION_FIELDS = (  # the first that is present counts
    *("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "Digest", "generation", "VersionId"),
    *("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "modified", "created"),
)

Result = TypeVar("Result")


class RemoteReadError(OSError):
    """Raised if an address cannot be read. Unlike broken content, this ends the run, which can be resumed."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.errno = errno.EIO


def retry(call: Callable[[], Result], address: str) -> Result:
    """The result of a call to a file system, repeated after each of `WAITS`. Raises `RemoteReadError`."""
    for wait in (*WAITS, None):
        try:
            return call()
        except Exception as error:  # each file system has its own classes
            if isinstance(error, RemoteReadError):
                raise
            if _is_permanent(error):
                state = "does not exist" if isinstance(error, FileNotFoundError) else "cannot be read"
                raise RemoteReadError(
                    f"{address} {state} ({_described(error)}). Check the address and the access."
                ) from error
            if wait is None:
                raise RemoteReadError(
                    f"{address} cannot be read, after {len(WAITS) + 1} attempts ({_described(error)}). Check the"
                    " connection, and run the same command again to resume."
                ) from error
            logger.info(f"{address}: {_described(error)}; the next attempt is in {wait} seconds.")
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


class RemoteStream(io.RawIOBase):
    """A file at an address. After a lost connection it is opened again, at the position that was reached."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._position = 0
        self._file: Any = None
        self._has_ranges = True
        info = file_info(address)
        self._version = version_of(info)
        self._size: int | None = info.get("size")

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes: the next read opens the file at the position, if needed."""
        return True

    def tell(self) -> int:
        """The position of the next read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Sets the position of the next read. Makes no request."""
        if whence == io.SEEK_END and self._size is None:
            raise RemoteReadError(f"The server of {self._address} does not tell its size, which is required. Copy it.")
        starts = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size or 0}
        self._position = max(0, starts[whence] + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer, except at the end of the file."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def read(self, size: int = -1) -> bytes:
        """Returns `size` bytes, or fewer at the end of the file only."""
        if size < 0 and self._size is None:
            return self.readall()
        left = size if self._size is None else max(0, self._size - self._position)
        size = left if size < 0 else min(size, left)
        parts: list[bytes] = []
        while size > 0 and (part := retry(partial(self._read_part, size), self._address)):
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Closes the connection."""
        self._disconnect()
        super().close()

    def _read_part(self, size: int) -> bytes:
        try:
            part = self._connect().read(size)
            if not part and self._size is not None:
                raise ConnectionError(f"it ends at byte {self._position} of {self._size}")
        except Exception as error:
            self._disconnect()
            # Of a server that only sends whole files.
            if self._has_ranges and isinstance(error, ValueError) and "range requests" in str(error):
                self._has_ranges = False
                return self._read_part(size)
            raise
        self._position += len(part)
        return part

    def _connect(self) -> Any:
        """The open file at the position."""
        if self._file is None:
            filesystem, path = fsspec.core.url_to_fs(self._address)
            if version_of(_uncached_info(filesystem, path)) != self._version:
                raise RemoteReadError(f"{self._address} has changed while it was read. Run the command again.")
            options = {} if self._has_ranges else {"block_size": 0}
            self._file = filesystem.open(path, "rb", cache_type="none", **options)
        if self._has_ranges:
            if self._file.tell() != self._position:
                self._file.seek(self._position)
            return self._file
        if self._file.tell() > self._position:
            self._disconnect()
            return self._connect()
        while (gap := self._position - self._file.tell()) > 0 and self._file.read(min(gap, 2**20)):
            pass
        return self._file

    def _disconnect(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except Exception as error:  # the connection is lost
                logger.debug(f"{self._address}: {error}")


def file_info(address: str) -> Mapping[str, Any]:
    """What a file system tells of a file now. Raises `RemoteReadError`."""
    return retry(lambda: _uncached_info(*fsspec.core.url_to_fs(address)), address)


def version_of(info: Mapping[str, Any]) -> str:
    """Differs if the file has changed, as far as the file system tells."""
    names = (name for name in _VERSION_FIELDS if info.get(name))
    return repr([info.get("size"), next(((name, str(info[name])) for name in names), None)])


def _uncached_info(filesystem: fsspec.AbstractFileSystem, path: str) -> Mapping[str, Any]:
    filesystem.invalidate_cache()
    return filesystem.info(path)


def _is_permanent(error: Exception) -> bool:
    if isinstance(error, FileNotFoundError):
        return error.__cause__ is None or getattr(error.__cause__, "status", None) in _MISSING_STATUS
    return isinstance(error, _PERMANENT)


def _described(error: BaseException) -> str:
    """The cause of an error in one line."""
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    return " ".join(f"{type(cause).__name__}: {cause}".split()).rstrip(": ")


__all__ = ["WAITS", "RemoteReadError", "RemoteStream", "file_info", "retry", "version_of"]
