# SPDX-License-Identifier: BSD-3-Clause
"""Folders of images with text files: `1.jpg` with `1.txt` or `1.json`, also in subfolders."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...image_files import list_images
from .records import ImageRecord, RecordStream
from .samples import Shard, Skipped, Stream, cut_rows
from .sidecars import SIDECAR_SUFFIXES, read_sidecars


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images, or one image. `name` starts the ids of its samples."""

    path: Path
    name: str
    needs_captions: bool = True

    def records(self) -> RecordStream:
        """Records and skipped ones, in the order of the paths."""
        return self._read(self._images())

    def shards(self, shard_size: int) -> list[Shard]:
        """Shards of `shard_size` images."""
        images = self._images()
        return [
            Shard(f"{self.name}-{number:05d}", partial(self._stream, images[start:stop]), partial(int, stop - start))
            for number, (start, stop) in enumerate(cut_rows(len(images), shard_size))
        ]

    def _images(self) -> list[Path]:
        images = [self.path] if self.path.is_file() else list_images(self.path, recursive=True)
        if self.needs_captions and not any(map(_has_sidecar, images)):
            raise ValueError(
                f"{self.path} has images without captions ({len(images)}, such as {images[0].name}). Add a"
                " metadata.jsonl or metadata.csv, or a .txt file for each image; or pass a JSON list with this folder as"
                " image_root."
            )
        return images

    def _read(self, images: Sequence[Path]) -> RecordStream:
        for image in images:
            key = image.name if image == self.path else image.relative_to(self.path).as_posix()
            sample_id = f"{self.name}/{key}"
            try:
                if self.needs_captions and not _has_sidecar(image):
                    raise ValueError(f"it has no caption: no {' or '.join(SIDECAR_SUFFIXES)} file of the same name")
                text, fields = (_content(image.with_suffix(suffix)) for suffix in SIDECAR_SUFFIXES)
                captions, image_id = read_sidecars(text, fields, sample_id, needs_captions=self.needs_captions)
            except ValueError as error:
                yield Skipped(sample_id, "bad_record", str(error))
                continue
            yield ImageRecord(sample_id, key, str(image), captions, image_id, path=key)

    def _stream(self, images: Sequence[Path]) -> Stream:
        for item in self._read(images):
            yield from [item] if isinstance(item, Skipped) else item.samples()


def _has_sidecar(image: Path) -> bool:
    return any(image.with_suffix(suffix).is_file() for suffix in SIDECAR_SUFFIXES)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


__all__ = ["ImageFolder"]
