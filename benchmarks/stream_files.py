# SPDX-License-Identifier: BSD-3-Clause
"""Files of image-text pairs with bad records of all kinds among them, for `benchmarks.streams`."""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .bad_records import (
    ALL_RECORDS,
    GOOD_IMAGE,
    LIST_RECORDS,
    PARQUET_RECORDS,
    TAR_RECORDS,
    BadRecord,
    reasons,
    tar_members,
    write_bad_files,
)


RECORDS_PER_KIND = 50_000
"""Records for each copy of the bad ones."""


@dataclass(frozen=True)
class StreamFiles:
    """The files, and what a reader must find in them."""

    tars: dict[str, int]  # number of usable records by path
    others: list[str]  # a JSON list and a Parquet file
    num_records: int
    by_reason: dict[str, int]  # bad records

    @property
    def num_usable(self) -> int:
        """Number of records that are not bad."""
        return self.num_records - sum(self.by_reason.values())


def write_stream_files(folder: Path, num_records: int, num_tars: int) -> StreamFiles:
    """Writes `num_records` records: about 98% of them in tars, the others in a JSON list and a Parquet file."""
    copies = max(1, num_records // RECORDS_PER_KIND)
    listed, rows, packed = (copies * records for records in (LIST_RECORDS, PARQUET_RECORDS, TAR_RECORDS))
    num_listed, num_rows = (max(num_records // 100, 4 * len(bad)) for bad in (listed, rows))
    images = folder / "list"
    write_bad_files(images)
    _write_list(images / "list.jsonl", _spread(listed, num_listed))
    _write_parquet(folder / "rows.parquet", _spread(rows, num_rows))
    records = _spread(packed, num_records - num_listed - num_rows)
    return StreamFiles(
        tars=_write_tars(folder, records, -(-(num_records - num_listed - num_rows) // num_tars)),
        others=[str(images / "list.jsonl"), str(folder / "rows.parquet")],
        num_records=num_records,
        by_reason=dict(reasons(copies * ALL_RECORDS)),
    )


def _spread(bad: Sequence[BadRecord], num_records: int) -> Iterator[BadRecord | None]:
    """The bad records at equal distances among good ones, which are `None`."""
    distance = num_records // len(bad)
    for number in range(num_records):
        index, place = divmod(number, distance)
        yield bad[index] if place == distance // 2 and index < len(bad) else None


def _caption(number: int) -> str:
    return f"a red square with the number {number}"


def _write_tars(folder: Path, records: Iterator[BadRecord | None], tar_size: int) -> dict[str, int]:
    """Writes tars of `tar_size` records, and returns their paths with the numbers of usable ones."""
    num_usable: dict[str, int] = {}
    while own := list(islice(records, tar_size)):
        path = folder / f"{len(num_usable):05d}.tar"
        with tarfile.open(path, "w") as tar:
            for number, bad in enumerate(own):
                key = f"{number:06d}"
                good = [(f"{key}.jpg", GOOD_IMAGE), (f"{key}.txt", _caption(number).encode())]
                for name, content in good if bad is None else tar_members(bad, key):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        num_usable[str(path)] = own.count(None)
    return num_usable


def _write_list(path: Path, records: Iterable[BadRecord | None]) -> None:
    with path.open("wb") as file:
        for number, bad in enumerate(records):
            good = {"image": "good.jpg", "caption": _caption(number), "image_id": number}
            file.write((json.dumps(good).encode() if bad is None else bad.content) + b"\n")


def _write_parquet(path: Path, records: Iterable[BadRecord | None]) -> None:
    rows = [
        {"image": GOOD_IMAGE, "caption": _caption(number)} if bad is None else bad.content
        for number, bad in enumerate(records)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1_000)


__all__ = ["StreamFiles", "write_stream_files"]
