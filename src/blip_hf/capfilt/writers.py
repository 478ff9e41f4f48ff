# SPDX-License-Identifier: BSD-3-Clause
"""Kept pairs of a shard as Parquet, as a WebDataset tar, or as a JSON list in BLIP's form.

Images are written as they were encoded, and the same pairs always give the same bytes.
"""

import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ..data.readers.samples import Sample, Skipped
from ..files import atomic_write, remove_partial


PairFormat = Literal["parquet", "webdataset", "json"]
Models = Mapping[str, Mapping[str, str]]

SUFFIXES: dict[PairFormat, str] = {"parquet": ".parquet", "webdataset": ".tar", "json": ".json"}

_FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "caption": datasets.Value("string"),
        "image_id": datasets.Value("string"),
        "sample_id": datasets.Value("string"),
        "text_index": datasets.Value("int32"),
        "source": datasets.Value("string"),
        "itm": datasets.Value("float32"),
        "itc": datasets.Value("float32"),
        "log_prob": datasets.Value("float32"),
        "captioner": datasets.Value("string"),
        "filter": datasets.Value("string"),
    }
)
_GROUP_BYTES = 2**26
_GROUP_ROWS = 1000
_IMAGE_NAME = re.compile(r"\d{8}\.\w+")  # of a shard's folder


@dataclass(frozen=True)
class _ImagePairs:
    """An image with the pairs that it is part of, as records of everything but the image."""

    sample: Sample
    records: list[dict[str, Any]]


def write_pairs(
    samples: Iterable[Sample | Skipped],
    rows: pa.Table,
    path: str | os.PathLike[str],
    format: PairFormat = "parquet",
    *,
    models: Models | None = None,
) -> Path:
    """Writes the kept pairs of a shard, which appear under their name only when they are whole.

    | format         | what is written                                                                               |
    |----------------|-----------------------------------------------------------------------------------------------|
    | `"parquet"`    | `path.parquet`: a row a pair with the encoded image, as `datasets.load_dataset` reads it    |
    | `"webdataset"` | `path.tar`: `<number>.jpg` (or as the image is), `.txt` and `.json` for each pair           |
    | `"json"`       | `path.json`: BLIP's list. Images that had a path keep it, others are written to `path/`     |

    Beside image, `caption` and `image_id`, a pair has `sample_id`, `text_index`, `source`, the scores `itm`, `itc` and
    `log_prob`, and which `captioner` (of a synthetic text) and `filter` they are from.

    Args:
        samples (iterable of `Sample` or `Skipped`):
            What the shard gives; one is held at a time, and those without a row are passed over.
        rows (`pyarrow.Table`):
            The rows of the shard's scores that are kept, in the order of the samples.
        path (`str` or `Path`):
            Where to, without a suffix.
        format (`str`, *optional*, defaults to `"parquet"`):
            One of the above.
        models (`Mapping`, *optional*):
            For `"captioner"` and `"filter"`, the `"name"` and the `"fingerprint"` of the model.

    Returns:
        `Path`: the file.

    Raises:
        ValueError: If the format is unknown, `samples` lack one that has a row, or a folder with files of another kind is
            where the images of a JSON list go.
    """
    if format not in SUFFIXES:
        raise ValueError(f"format={format!r} is unknown; pass one of {', '.join(map(repr, SUFFIXES))}.")
    path = Path(path)
    target = path.with_name(path.name + SUFFIXES[format])
    # The list goes last, so that its images are there when it is.
    with atomic_write(target) as beside, _WRITERS[format](beside, path) as writer:
        for item in _join(samples, rows, models or {}):
            writer.add(item)
    return target


def remove_partial_pairs(path: str | os.PathLike[str], format: PairFormat) -> None:
    """Removes what processes that were killed have left of the pairs of a shard. None may be writing them.

    Args:
        path (`str` or `Path`):
            As of [`write_pairs`].
        format (`str`):
            Of the pairs.
    """
    path = Path(path)
    for target in (path, path.with_name(path.name + SUFFIXES[format])):
        remove_partial(target)


def _join(samples: Iterable[Sample | Skipped], rows: pa.Table, models: Models) -> Iterator[_ImagePairs]:
    """The samples that have rows, with these."""
    identities = {role: f"{model['name']}@{model['fingerprint']}" for role, model in models.items()}
    pending: dict[str, list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        del row["image"]
        row["caption"] = row.pop("text")
        row["captioner"] = identities.get("captioner") if row["source"] == "synthetic" else None
        row["filter"] = identities.get("filter")
        pending.setdefault(row["sample_id"], []).append(row)
    for sample in samples:
        if isinstance(sample, Sample) and sample.sample_id in pending:
            yield _ImagePairs(sample, pending.pop(sample.sample_id))
    if pending:
        raise ValueError(
            f"The source lacks {len(pending)} samples that have scores, such as {next(iter(pending))!r}. Pass the source"
            " that was scored, unchanged."
        )


class _Writer(Protocol):
    def add(self, item: _ImagePairs) -> None:
        """Writes the pairs of an image."""


class _ParquetWriter:
    """Gathers pairs and writes them in groups of bounded size."""

    def __init__(self, file: pq.ParquetWriter) -> None:
        self.file = file
        self.pairs: list[dict[str, Any]] = []
        self.num_bytes = 0

    def add(self, item: _ImagePairs) -> None:
        image = {"bytes": _encoded(item.sample), "path": None}
        for record in item.records:
            self.pairs.append({"image": image, **record})
            # Arrow holds it once a pair, before the file holds it once a group.
            self.num_bytes += len(image["bytes"])
            if self.num_bytes >= _GROUP_BYTES or len(self.pairs) >= _GROUP_ROWS:
                self.flush()

    def flush(self) -> None:
        """Writes what was gathered."""
        if self.pairs:
            self.file.write_table(pa.Table.from_pylist(self.pairs, schema=self.file.schema))
        self.pairs, self.num_bytes = [], 0


@contextmanager
def _parquet(beside: Path, path: Path) -> Iterator[_Writer]:
    # With a dictionary as large as a group, an image with several captions is stored once.
    with pq.ParquetWriter(
        beside, _FEATURES.arrow_schema, compression="zstd", dictionary_pagesize_limit=2 * _GROUP_BYTES
    ) as file:
        writer = _ParquetWriter(file)
        yield writer
        writer.flush()


class _TarWriter:
    def __init__(self, tar: tarfile.TarFile) -> None:
        self.tar = tar
        self.num_pairs = 0

    def add(self, item: _ImagePairs) -> None:
        content = _encoded(item.sample)
        for record in item.records:
            key = f"{self.num_pairs:08d}"
            self._add_member(f"{key}.{_suffix(content)}", content)
            self._add_member(f"{key}.txt", record["caption"].encode())
            self._add_member(f"{key}.json", json.dumps(record).encode())
            self.num_pairs += 1

    def _add_member(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)  # no time, owner or mode of this machine
        member.size = len(content)
        self.tar.addfile(member, BytesIO(content))


@contextmanager
def _webdataset(beside: Path, path: Path) -> Iterator[_Writer]:
    with tarfile.open(beside, "w", format=tarfile.USTAR_FORMAT) as tar:
        yield _TarWriter(tar)


class _ListWriter:
    """Writes records as they come, and a folder of images once there is one without a path."""

    def __init__(self, file: TextIO, path: Path, stack: ExitStack) -> None:
        self.file = file
        self.path = path
        self.stack = stack
        self.folder: Path | None = None
        self.num_images = 0
        self.separator = "\n"

    def add(self, item: _ImagePairs) -> None:
        content = item.sample.image
        image = self._store(content) if isinstance(content, bytes) else os.path.abspath(content)
        for record in item.records:
            self.file.write(self.separator + json.dumps({"image": image, **record}))
            self.separator = ",\n"

    def _store(self, content: bytes) -> str:
        if self.folder is None:
            self.folder = self.stack.enter_context(atomic_write(self.path))
            self.folder.mkdir()
        name = f"{self.num_images:08d}.{_suffix(content)}"
        (self.folder / name).write_bytes(content)
        self.num_images += 1
        return f"{self.path.name}/{name}"


@contextmanager
def _json(beside: Path, path: Path) -> Iterator[_Writer]:
    if path.is_dir():  # of an earlier run, whose list must not outlive its images
        _refuse_other_files(path)
        path.with_name(path.name + SUFFIXES["json"]).unlink(missing_ok=True)
        shutil.rmtree(path)
    with ExitStack() as stack, beside.open("w", encoding="utf-8") as file:
        file.write("[")
        yield _ListWriter(file, path, stack)
        file.write("\n]\n")


def _refuse_other_files(folder: Path) -> None:
    other = sorted(path.name for path in folder.iterdir() if not _IMAGE_NAME.fullmatch(path.name))
    if other:
        raise ValueError(
            f"{folder} is to hold the images of a shard in place of what is there, and {other[0]} is none that was"
            " written for one. Pass an empty folder as output, or move it."
        )


_WRITERS = {"parquet": _parquet, "webdataset": _webdataset, "json": _json}


def _encoded(sample: Sample) -> bytes:
    return sample.image if isinstance(sample.image, bytes) else Path(sample.image).read_bytes()


def _suffix(content: bytes) -> str:
    with Image.open(BytesIO(content)) as header:
        return {"JPEG": "jpg", "MPO": "jpg"}.get(header.format, header.format.lower())


__all__ = ["SUFFIXES", "PairFormat", "remove_partial_pairs", "write_pairs"]
