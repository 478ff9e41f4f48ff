# SPDX-License-Identifier: BSD-3-Clause
"""WebDataset tars, read member by member."""

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...image_files import image_suffixes, is_visible, warn_of_other_files
from ...image_utils import MAX_IMAGE_BYTES
from .records import ImageRecord, RecordStream
from .remote import RemoteFile
from .samples import Reason, Shard, Skipped, Stream
from .sidecars import SIDECAR_SUFFIXES, read_sidecars
from .tar_stream import read_members


MAX_TEXT_BYTES = 2**20
"""Maximum size in bytes of a text or JSON member."""
_MAX_NAME_LENGTH = 4096  # as that of a path in Linux


@dataclass
class _Members:
    """The members of a sample that were read so far."""

    key: str
    image: bytes | None = None
    text: bytes | None = None
    record: bytes | None = None
    dotted: dict[str, None] = field(default_factory=dict)  # keys of members with a further suffix, in order
    huge: list[tuple[str, int]] = field(default_factory=list)  # suffix and size


@dataclass(frozen=True)
class TarFile:
    """A tar (one shard), also compressed."""

    path: Path | RemoteFile
    name: str
    needs_captions: bool = True

    def shards(self, shard_size: int) -> list[Shard]:
        """The one shard."""
        return [Shard(self.name, self._stream, self._count)]

    def records(self) -> RecordStream:
        """Records and skipped ones, in order."""
        members: _Members | None = None
        others: Counter[str] = Counter()
        try:
            for key, suffix, content in _read_members(self.path, others):
                if members is None or members.key != key:
                    if members is not None:
                        yield from self._record(members)
                    members = _Members(key)
                _add(members, suffix, content)
        except tarfile.TarError as error:
            # Later members of the last sample may be missing.
            if members is not None and members.image is not None and members.text is not None:
                yield from self._record(members)
            sample_id = f"{self.name}/{members.key}" if members else self.name
            yield Skipped(sample_id, "truncated_tar", str(error))
            return
        if members is not None:
            yield from self._record(members)
        warn_of_other_files(self.path, others)

    def _count(self) -> int | None:
        """Number of samples in img2dataset's `_stats.json` of the local tar, if there is one."""
        if isinstance(self.path, RemoteFile):
            return None  # only addresses that the user gave are read
        name = self.path.name.partition(".tar")[0].removesuffix(".tgz")
        try:
            count = json.loads(self.path.with_name(f"{name}_stats.json").read_bytes())["successes"]
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return count if isinstance(count, int) else None

    def _stream(self) -> Stream:
        for item in self.records():
            yield from [item] if isinstance(item, Skipped) else item.samples()

    def _record(self, members: _Members) -> RecordStream:
        sample_id = f"{self.name}/{members.key}"
        for suffix, size in members.huge:
            reason: Reason = "huge_text" if f".{suffix}" in SIDECAR_SUFFIXES else "huge_image"
            yield Skipped(sample_id, reason, f"its {suffix} has {size} bytes")
        if members.huge:
            return
        if members.dotted and members.image is members.text is members.record is None:
            # With other members these belong to the sample; alone they are samples with dots in their names.
            detail = "its name has a dot before its suffix, and a key ends at the first dot. Rename it"
            yield from (Skipped(f"{self.name}/{key}", "bad_record", detail) for key in members.dotted)
            return
        try:
            if members.image is None:
                raise ValueError("it has no image")
            captions, image_id = read_sidecars(
                members.text, members.record, sample_id, needs_captions=self.needs_captions
            )
        except ValueError as error:
            yield Skipped(sample_id, "bad_record", str(error))
            return
        yield ImageRecord(sample_id, members.key, members.image, captions, image_id)


def _read_members(path: Path | RemoteFile, others: Counter[str]) -> Iterator[tuple[str, str, bytes | int]]:
    """Key, suffix and content of each image, text and JSON, or its size if it is too large. Counts other members.

    A key ends at the first dot. Members with a further suffix, such as `001.seg.png`, have no content.
    """
    for tar, member in read_members(path):
        if len(member.name) > _MAX_NAME_LENGTH:
            raise tarfile.ReadError(f"a name has {len(member.name)} characters")
        folder, _, base = member.name.removeprefix("./").rpartition("/")
        stem, _, suffix = base.partition(".")
        suffix = suffix.lower()
        _, dot, last = suffix.rpartition(".")
        if not member.isfile() or not stem or not all(map(is_visible, folder.split("/"))):
            continue
        is_image = f".{last}" in image_suffixes()
        if not is_image and f".{last}" not in SIDECAR_SUFFIXES:
            others[f".{last}"] += 1
            continue
        limit = MAX_IMAGE_BYTES if is_image else MAX_TEXT_BYTES
        key = f"{folder}/{stem}" if folder else stem
        if dot:
            yield key, suffix, b""
        else:
            file = tar.extractfile(member) if member.size <= limit else None
            yield key, suffix, member.size if file is None else file.read()


def _add(members: _Members, suffix: str, content: bytes | int) -> None:
    if "." in suffix:
        members.dotted[f"{members.key}.{suffix.rpartition('.')[0]}"] = None
    elif isinstance(content, int):
        members.huge.append((suffix, content))
    elif suffix == "txt":
        members.text = content
    elif suffix == "json":
        members.record = content
    elif members.image is None:
        members.image = content


__all__ = ["MAX_TEXT_BYTES", "TarFile"]
