# SPDX-License-Identifier: BSD-3-Clause
"""Each kind of bad record is skipped among good ones, in every reader, and counted with its reason."""

from collections import Counter
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.bad_records import (
    ALL_RECORDS,
    GOOD_IMAGE,
    LIST_RECORDS,
    PARQUET_RECORDS,
    TAR_RECORDS,
    reasons,
    tar_members,
    write_bad_files,
)
from blip_hf.data.pairs import PairDataset
from blip_hf.data.readers import Sample, find_shards, load_pairs
from blip_hf.image_utils import UnreadableImageError
from tests.support.files import write_tar


def write_list(folder, records):
    write_bad_files(folder)
    good = b'{"image": "good.jpg", "caption": "good"}'
    lines = chain.from_iterable((good, record.content) for record in records)
    (folder / "list.jsonl").write_bytes(b"\n".join(lines))
    return folder / "list.jsonl"


def write_members(folder, records):
    members = []
    for number, record in enumerate(records):
        members += [(f"{number:03d}-good.jpg", GOOD_IMAGE), (f"{number:03d}-good.txt", b"good")]
        members += tar_members(record, f"{number:03d}-{record.kind}")
    return write_tar(folder / "a.tar", members)


def write_rows(folder, records):
    rows = chain.from_iterable(({"image": GOOD_IMAGE, "caption": "good"}, record.content) for record in records)
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / "a.parquet")
    return folder / "a.parquet"


SOURCES = pytest.mark.parametrize(
    ("write", "records"),
    [(write_list, LIST_RECORDS), (write_members, TAR_RECORDS), (write_rows, PARQUET_RECORDS)],
    ids=["list", "tar", "parquet"],
)


def read_by_reason(source):
    """Counts of good texts and of skipped records by reason, with all images decoded."""
    found = Counter()
    for shard in find_shards(source):
        for item in shard.samples():
            if not isinstance(item, Sample):
                found[item.reason] += 1
                continue
            try:
                item.open_image()
                found.update(item.texts)
            except UnreadableImageError:
                found["unreadable_image"] += len(item.texts)
    return found


def test_there_are_fifty_kinds():
    assert len({record.kind for record in ALL_RECORDS}) == len(ALL_RECORDS) == 50


@SOURCES
def test_streams_count_each_bad_record_once(write, records, tmp_path):
    assert read_by_reason(write(tmp_path, records)) == {"good": len(records)} | reasons(records)


@SOURCES
def test_each_bad_record_has_its_own_reason(write, records, tmp_path):
    for number, record in enumerate(records):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert read_by_reason(write(folder, [record])) == {"good": 1, record.reason: 1}, record.kind


@SOURCES
def test_random_access_skips_each_bad_record(write, records, tmp_path, caplog):
    if write is write_list:  # a list that is loaded as a whole must be JSON
        records = [
            record for record in records if not record.kind.startswith(("line_is_nested", "line_is_trun", "number"))
        ]
    source = write(tmp_path, records)
    pairs = PairDataset(load_pairs(source))
    usable = [item["caption"] for i in range(len(pairs)) if (item := pairs.get(i)) is not None]
    # Captions of more than 4096 characters are cut to 30 words.
    assert usable.count("good") == len(records)
    assert len(usable) <= len(records) + reasons(records)["huge_text"]
    assert f"{source}: skipped " in caplog.text
