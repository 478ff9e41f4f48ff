# SPDX-License-Identifier: BSD-3-Clause
"""Small Parquet files that expand to hundreds of megabytes, read in a child process whose memory is measured."""

import resource
import sys
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip_hf.data.readers import find_shards
from blip_hf.data.readers.parquet_pages import parse_page_header
from tests.support.forks import run_forked
from tests.support.images import encoded_image


MB = 2**20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux counts it")


def write_lying_footer(path):
    """One image of 270 MB, of which the footer says that it has 8 bytes."""
    table = pa.table({"image": [bytes(270 * MB)], "caption": ["a"]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)
    size = pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size
    true, false = _varint(2 * size), bytes([0x90, 0x80, 0x80, 0x80, 0x00])
    content = path.read_bytes()
    assert content.count(true) == 1
    assert len(true) == len(false)
    path.write_bytes(content.replace(true, false))


def write_repeated_value(path):
    """One value of 20 MB in the dictionary, repeated in 500 rows."""
    images = pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), pa.array([bytes(20 * MB)]))
    table = pa.table({"image": images, "caption": ["a"] * 500})
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=2**30, write_statistics=False)


def write_repeated_prefix(path):
    """Rows whose values are those of the row before."""
    table = pa.table({"image": [bytes(20 * MB)] * 20, "caption": ["a"] * 20})
    options = {"use_dictionary": False, "column_encoding": {"image": "DELTA_BYTE_ARRAY"}, "write_statistics": False}
    pq.write_table(table, path, compression="zstd", **options)


def write_long_list(path):
    """One row with 10 million equal captions."""
    captions = pa.ListArray.from_arrays(pa.array([0, 10_000_000], pa.int32()), pa.repeat("a", 10_000_000))
    pq.write_table(pa.table({"image": [b"x"], "caption": captions}), path)


def _varint(number):
    digits = [number >> shift & 127 for shift in range(0, number.bit_length(), 7)]
    return bytes([*(digit | 128 for digit in digits[:-1]), digits[-1]])


def read_and_measure(source, report):
    """Writes reasons and details of skipped records, the number of samples, and the growth of the memory in MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    items = [
        getattr(item, "detail", None) for shard in find_shards(source) for item in shard.samples(checks_images=False)
    ]
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    report.write_text(f"{growth}\n{items.count(None)}\n{[item for item in items if item]}")


@pytest.mark.parametrize(
    ("write", "message", "max_growth"),
    [
        (write_lying_footer, "expands from", 100),
        (write_repeated_value, "rows expand to more than", 900),
        (write_repeated_prefix, "expands from", 100),
        (write_long_list, "expands from", 100),
    ],
)
def test_bombs_are_skipped_by_name_and_take_no_memory(tmp_path, write, message, max_growth):
    path = tmp_path / "bomb.parquet"
    assert run_forked(lambda: write(path)) == 0
    assert path.stat().st_size < 50_000
    for source in (path, f"file://{path}"):
        assert run_forked(partial(read_and_measure, source, tmp_path / "report.txt")) == 0
        growth, num_samples, details = (tmp_path / "report.txt").read_text().split("\n", 2)

        assert message in details
        assert details.count("rows ") >= 1
        assert int(num_samples) < 20
        assert int(growth) < max_growth


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("use_dictionary", [True, False])
def test_usual_files_are_read(tmp_path, compression, version, use_dictionary):
    image = {"bytes": encoded_image(), "path": None}
    table = pa.table({"image": [image] * 300, "captions": [["a dog", f"dog {number}"] for number in range(300)]})
    options = {"compression": compression, "data_page_version": version, "use_dictionary": use_dictionary}
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100, data_page_size=500, **options)
    local, remote = (
        list(shard.samples())
        for source in (tmp_path / "a.parquet", f"file://{tmp_path}/a.parquet")
        for shard in find_shards(source)
    )

    assert [sample.texts[1] for sample in local] == [f"dog {number}" for number in range(300)]
    assert remote == local


def test_large_dictionary_is_read_in_small_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("blip_hf.data.readers.parquet_pages.FREE_BYTES", 3000)
    noise = [bytes((number * seed) % 251 for number in range(1, 500)) for seed in range(1, 11)]
    table = pa.table({"image": noise * 8, "caption": [str(number) for number in range(80)]})
    pq.write_table(table, tmp_path / "a.parquet", compression="none")
    (shard,) = find_shards(tmp_path)

    assert [item.texts for item in shard.samples(checks_images=False)] == [(str(number),) for number in range(80)]


@pytest.mark.parametrize(
    "content",
    [
        b"\x15\x00\x15\x01\x15\x02\x00",  # a negative size
        b"\x15\x00\x15\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x02\x00",  # a number of 77 bits
        b"\x15\x00\x00",  # no sizes
        b"\x1b\x00",  # a map
        b"\x1c" * 20,  # nested structs
    ],
)
def test_broken_page_headers_are_refused(content):
    with pytest.raises(pa.ArrowInvalid, match="page header"):
        parse_page_header(memoryview(content))
