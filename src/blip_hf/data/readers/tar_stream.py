# SPDX-License-Identifier: BSD-3-Clause
"""The headers and bytes of a tar with bounds, so that a broken or hostile one costs no more time and memory than its size."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Self

from .remote import RemoteFile


MAX_HEADER_BYTES = 2**18
"""Maximum size in bytes of the headers of a member, with those that extend its name and attributes."""
MAX_EXPANSION = 100
"""Maximum ratio of the size of a tar to that of its compressed file, after the first `FREE_BYTES`."""
FREE_BYTES = 2**28
_GZIP = b"\x1f\x8b"


class _StrictMember(tarfile.TarInfo):
    """Raises an error for a truncated header. tarfile would read it as the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the stubs lack it
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error}, where a member or the end of the archive should be") from error


class _BoundedFile:
    """A tar file that is read forward, decompressed.

    Raises an error at the end of the file, where tarfile would continue to the end of the size that a header declares.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._is_compressed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        self._content = gzip.GzipFile(fileobj=file) if self._is_compressed else file
        self._position = 0
        self.expect_header(0)

    def expect_header(self, offset: int) -> None:
        """Bounds the bytes that are read for the next header, at `offset`."""
        self._end_of_header = offset + MAX_HEADER_BYTES

    def read(self, size: int) -> bytes:
        if self._position > self._end_of_header:
            raise tarfile.ReadError(f"a header at byte {self._position} has more than {MAX_HEADER_BYTES} bytes")
        try:
            content = self._content.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise tarfile.ReadError(str(error)) from error
        if not content:
            raise tarfile.ReadError("unexpected end of data")
        self._position += len(content)
        if self._is_compressed and self._position > FREE_BYTES + MAX_EXPANSION * self._file.tell():
            raise tarfile.ReadError(f"it expands to more than {MAX_EXPANSION} times its compressed size")
        return content


def read_members(path: Path | RemoteFile) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members of a tar or gzipped tar in order, each with the archive that `extractfile` reads it from.

    Raises `tarfile.TarError` for broken content.
    """
    with path.open("rb") as raw:
        file = _BoundedFile(raw)
        try:
            # "r|" only reads forward. Names that are not UTF-8 must not get into a table.
            only_read: Any = file
            with tarfile.open(fileobj=only_read, mode="r|", tarinfo=_StrictMember, errors="replace") as tar:
                for member in tar:
                    # tarfile keeps all headers, and copies attributes of the archive to each member.
                    state: Any = tar  # the stubs lack `members`
                    state.members.clear()
                    state.pax_headers.clear()
                    file.expect_header(tar.offset)
                    yield tar, member
        except (ValueError, OverflowError, RecursionError) as error:  # of invalid numbers, or of a chain of headers
            raise tarfile.ReadError(f"invalid header: {error}") from error


__all__ = ["FREE_BYTES", "MAX_EXPANSION", "MAX_HEADER_BYTES", "read_members"]
