# SPDX-License-Identifier: BSD-3-Clause
"""Writes the kept pairs of a shard as Parquet, WebDataset tar, or JSON list in BLIP's form.

Images are not encoded again, and the same pairs always give the same bytes.
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
_IMAGE_NAME = re.compile(r"\d{8}\.\w+")  # in the image folder of a shard


@dataclass(frozen=True)
class _ImagePairs:
    """An image with the records of its pairs."""

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
    """Writes the kept pairs of a shard. The file appears once it is complete.

    | format         | output                                                                                      |
    |----------------|---------------------------------------------------------------------------------------------|
    | `"parquet"`    | `path.parquet`: one row per pair with the encoded image, for `datasets.load_dataset`        |
    | `"webdataset"` | `path.tar`: `<number>.jpg` (or the suffix of the image), `.txt` and `.json` of each pair    |
    | `"json"`       | `path.json`: BLIP's list. Images that are files keep their path, others go to `path/`       |

    A pair has the image, `caption`, `image_id`, `sample_id`, `text_index`, `source`, the scores `itm`, `itc` and
    `log_prob`, and the names of the `captioner` (of a synthetic text) and the `filter`.

    Args:
        samples (iterable of `Sample` or `Skipped`):
            Samples of the shard. Those without a row are passed over.
        rows (`pyarrow.Table`):
            Rows of the score table that are kept, in the order of the samples.
        path (`str` or `Path`):
            Output path without a suffix.
        format (`str`, *optional*, defaults to `"parquet"`):
            One of the table.
        models (`Mapping`, *optional*):
            The `"name"` and `"fingerprint"` of the `"captioner"` and the `"filter"`.

    Returns:
        `Path`: the file.

    Raises:
        ValueError: If the format is unknown, a sample that has a row is missing, or the folder for the images of a JSON
            list holds other files.
    """
    if format not in SUFFIXES:
        raise ValueError(f"format={format!r} is unknown; pass one of {', '.join(map(repr, SUFFIXES))}.")
    path = Path(path)
    target = path.with_name(path.name + SUFFIXES[format])
    # A JSON list appears after its images.
    with atomic_write(target) as temporary, _WRITERS[format](temporary, path) as writer:
        for item in _join(samples, rows, models or {}):
            writer.add(item)
    return target


def remove_partial_pairs(path: str | os.PathLike[str], format: PairFormat) -> None:
    """Removes the temporary files of killed processes. No process may be writing the pairs of this shard."""
    path = Path(path)
    for target in (path, path.with_name(path.name + SUFFIXES[format])):
        remove_partial(target)


def _join(samples: Iterable[Sample | Skipped], rows: pa.Table, models: Models) -> Iterator[_ImagePairs]:
    """Joins samples and rows."""
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
            f"The source lacks {len(pending)} samples that have scores, such as {next(iter(pending))!r}. Restore the"
            " source that was scored."
        )


class _Writer(Protocol):
    def add(self, item: _ImagePairs) -> None:
        """Writes the pairs of an image."""


class _ParquetWriter:
    """Writes pairs in row groups of bounded size."""

    def __init__(self, file: pq.ParquetWriter) -> None:
        self.file = file
        self.pairs: list[dict[str, Any]] = []
        self.num_bytes = 0

    def add(self, item: _ImagePairs) -> None:
        content = _encoded(item.sample)
        image = {"bytes": content, "path": None}
        for record in item.records:
            self.pairs.append({"image": image, **record})
            # Arrow holds the image once per pair; the file holds it once per group.
            self.num_bytes += len(content)
            if self.num_bytes >= _GROUP_BYTES or len(self.pairs) >= _GROUP_ROWS:
                self.flush()

    def flush(self) -> None:
        if self.pairs:
            self.file.write_table(pa.Table.from_pylist(self.pairs, schema=self.file.schema))
        self.pairs, self.num_bytes = [], 0


@contextmanager
def _parquet(temporary: Path, path: Path) -> Iterator[_Writer]:
    # The dictionary is as large as a group, so an image with several captions is stored once.
    with pq.ParquetWriter(
        temporary, _FEATURES.arrow_schema, compression="zstd", dictionary_pagesize_limit=2 * _GROUP_BYTES
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
        member = tarfile.TarInfo(name)  # without time, owner and mode, so that bytes repeat
        member.size = len(content)
        self.tar.addfile(member, BytesIO(content))


@contextmanager
def _webdataset(temporary: Path, path: Path) -> Iterator[_Writer]:
    with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        yield _TarWriter(tar)


class _ListWriter:
    """Writes a JSON list, and a folder for images that are not files."""

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
def _json(temporary: Path, path: Path) -> Iterator[_Writer]:
    if path.is_dir():  # images of an earlier run, whose list must go before they do
        _refuse_other_files(path)
        path.with_name(path.name + SUFFIXES["json"]).unlink(missing_ok=True)
        shutil.rmtree(path)
    with ExitStack() as stack, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        yield _ListWriter(file, path, stack)
        file.write("\n]\n")


def _refuse_other_files(folder: Path) -> None:
    other = sorted(path.name for path in folder.iterdir() if not _IMAGE_NAME.fullmatch(path.name))
    if other:
        raise ValueError(
            f"{folder} would be replaced by the images of a shard, but holds another file: {other[0]}. Pass an empty"
            " output folder, or move the file."
        )


_WRITERS = {"parquet": _parquet, "webdataset": _webdataset, "json": _json}


def _encoded(sample: Sample) -> bytes:
    return sample.image if isinstance(sample.image, bytes) else Path(sample.image).read_bytes()


def _suffix(content: bytes) -> str:
    with Image.open(BytesIO(content)) as header:
        name = str(header.format)
        return {"JPEG": "jpg", "MPO": "jpg"}.get(name, name.lower())


__all__ = ["SUFFIXES", "PairFormat", "remove_partial_pairs", "write_pairs"]
