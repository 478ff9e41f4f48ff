# SPDX-License-Identifier: BSD-3-Clause
"""Shards of WebDataset tars, which are read member by member and never held."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from .records import check_record, read_captions, read_optional_id
from .samples import MAX_IMAGE_BYTES, Shard, Skipped, Stream, check_texts


IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")
MAX_TEXT_BYTES = 2**20
"""Bytes of the largest text or JSON member that is read."""


class _StrictMember(tarfile.TarInfo):
    """A member whose header has to be whole: by itself, tarfile takes a torn header for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> "_StrictMember":
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error}, where a member or the end of the archive should stand") from error


@dataclass
class _Members:
    """What has been read of a sample: its members, and what is wrong with them."""

    sample_id: str
    image: bytes | None = None
    text: bytes | None = None
    record: bytes | None = None
    dotted: dict[str, None] = field(default_factory=dict)  # names of members with a further suffix, in order
    faults: list[Skipped] = field(default_factory=list)


def tar_shards(path: Path, name: str) -> list[Shard]:
    """The one shard that a tar is.

    Args:
        path (`Path`):
            The tar, which may be compressed.
        name (`str`):
            What it is called.

    Returns:
        `list[Shard]`: one shard.
    """
    return [Shard(name, partial(_stream, path, name))]


def _stream(path: Path, name: str) -> Stream:
    members = None
    try:
        for key, suffix, content in _read_members(path):
            sample_id = f"{name}/{key}"
            if members is None or members.sample_id != sample_id:
                if members is not None:
                    yield from _sample(members)
                members = _Members(sample_id)
            _add(members, suffix, content)
    except tarfile.TarError as error:
        # Of the sample that was being read, what comes last may be missing.
        if members is not None and members.image is not None and members.text is not None:
            yield from _sample(members)
        yield Skipped(members.sample_id if members else name, "truncated_tar", str(error))
        return
    if members is not None:
        yield from _sample(members)


def _read_members(path: Path) -> Iterator[tuple[str, str, bytes | int]]:
    """Key, suffix and content of each member of use, or in its place the size of one that is too large.

    A key ends at the first dot. Of members with a further suffix, such as `001.seg.png`, the content is not read.
    """
    # "r|*" goes forward only, and bytes of a name that are no UTF-8 must not get into a table.
    with tarfile.open(path, "r|*", tarinfo=_StrictMember, errors="replace") as tar:
        for member in tar:
            tar.members.clear()  # or each header read so far would be kept
            folder, _, base = member.name.removeprefix("./").rpartition("/")
            stem, _, suffix = base.partition(".")
            suffix = suffix.lower()
            _, dot, last = suffix.rpartition(".")
            if not member.isfile() or not stem or last not in (*IMAGES, "txt", "json"):
                continue
            limit = MAX_IMAGE_BYTES if last in IMAGES else MAX_TEXT_BYTES
            key = f"{folder}/{stem}" if folder else stem
            if dot:
                yield key, suffix, b""
            else:
                yield key, suffix, member.size if member.size > limit else tar.extractfile(member).read()


def _add(members: _Members, suffix: str, content: bytes | int) -> None:
    if "." in suffix:
        members.dotted[f"{members.sample_id}.{suffix.rpartition('.')[0]}"] = None
    elif isinstance(content, int):
        reason = "huge_image" if suffix in IMAGES else "huge_text"
        members.faults.append(Skipped(members.sample_id, reason, f"its {suffix} has {content} bytes"))
    elif suffix == "txt":
        members.text = content
    elif suffix == "json":
        members.record = content
    elif members.image is None:
        members.image = content


def _sample(members: _Members) -> Stream:
    if members.faults:
        yield from members.faults
        return
    if members.dotted and members.image is members.text is members.record is None:
        # Beside a sample they are further members of it; alone they are samples that are named otherwise.
        detail = "its name has a dot before its suffix, where a key ends. Rename it"
        yield from (Skipped(name, "bad_record", detail) for name in members.dotted)
        return
    sample_id = members.sample_id
    try:
        if members.image is None:
            raise ValueError(f"it has no image ({', '.join(IMAGES)})")
        record = check_record(json.loads(members.record or b"{}"), f"the JSON of {sample_id}", "caption")
        texts = read_captions(record, sample_id) if members.text is None else [members.text.decode()]
        image_id = read_optional_id(record, "image_id", sample_id)
    except (ValueError, RecursionError) as error:
        yield Skipped(sample_id, "bad_record", str(error))
        return
    yield from check_texts(sample_id, members.image, texts, sample_id if image_id is None else str(image_id))


__all__ = ["tar_shards"]
