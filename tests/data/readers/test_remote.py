# SPDX-License-Identifier: BSD-3-Clause
import gzip
import json
from collections import Counter
from itertools import islice

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.registry import known_implementations
from torch.utils.data import DataLoader

from blip_hf.data.readers import find_shards, load_pairs, remote, remote_stream
from blip_hf.data.readers.remote_stream import RemoteReadError
from blip_hf.data.streams import PairStream
from tests.support.file_server import serve_files
from tests.support.flaky_files import register_flaky_files
from tests.support.images import encoded_image
from tests.support.sources import read, summary
from tests.support.streams import make_reader, numbers_of, write_tar


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(remote_stream, "WAITS", (0, 0, 0))


@pytest.fixture
def folder(tmp_path):
    """Three tars with 10 records each, and a Parquet file with 20 in a folder."""
    for number in range(3):
        write_tar(tmp_path / f"web-{number:05d}.tar", 10, start=10 * number)
    (tmp_path / "tables").mkdir()
    table = pa.table({"image": [encoded_image()] * 20, "caption": [str(number) for number in range(20)]})
    pq.write_table(table, tmp_path / "tables" / "a.parquet", row_group_size=7)
    return tmp_path


@pytest.fixture
def memory(folder):
    filesystem = fsspec.filesystem("memory")
    for path in folder.rglob("*.*"):
        filesystem.pipe(f"/data/{path.relative_to(folder)}", path.read_bytes())
    yield filesystem
    filesystem.rm("/data", recursive=True)


@pytest.fixture
def server(folder):
    pytest.importorskip("aiohttp")
    with serve_files(folder) as server:
        yield server


@pytest.mark.parametrize("pattern", ["web-{00000..00002}.tar", "web-*.tar", "web-0000[0-2].tar", ""])
def test_tars_at_an_address_equal_local_ones(folder, memory, pattern):
    local = read(folder / "web-*.tar")

    assert read(f"memory://data/{pattern}") == local
    assert read(f"file://{folder}/{pattern}") == local


def test_parquet_at_an_address_equals_the_local_file(folder, memory):
    (shard,) = find_shards("memory://data/tables")

    assert list(shard.samples()) == read(folder / "tables")
    assert shard.num_records() == 20
    assert load_pairs("memory://data/tables/*.parquet")["caption"][:] == [str(number) for number in range(20)]


def test_gzipped_tar_at_an_address(folder, memory):
    memory.pipe("/data/z.tar.gz", gzip.compress((folder / "web-00000.tar").read_bytes()))

    assert [item.texts for item in read("memory://data/z.tar.gz")] == [(str(number),) for number in range(10)]


def test_local_and_remote_files_are_one_source(folder, memory):
    shards = find_shards([folder / "web-00000.tar", "memory://data/web-00001.tar", "memory://data/web-00002.tar"])

    assert [shard.name for shard in shards] == ["web-00000", "web-00001", "web-00002"]
    assert sorted(numbers_of(PairStream(shards))) == list(range(30))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://data/web-{00000..00005}.tar", "web-00005.tar does not exist"),
        ("memory://none", "memory://none does not exist"),
        ("memory://data/*.zip", "no file that ends in .tar"),
        ("memory://data/list.json", "does not exist"),
        ("s3a://bucket/a.tar", "needs a package that is not installed: Install s3fs"),
        ("nosuch://a/b.tar", "Protocol not known: nosuch"),
    ],
)
def test_unusable_addresses_are_named(memory, monkeypatch, address, message):
    missing = {"class": "no_such_package.Files", "err": "Install s3fs to access S3"}
    monkeypatch.setitem(known_implementations, "s3a", missing)

    with pytest.raises(ValueError, match=message):
        find_shards(address)


def test_folder_with_two_kinds_is_refused_and_img2dataset_is_not(folder, memory):
    memory.pipe("/data/other.parquet", b"")
    with pytest.raises(ValueError, match=r"1 Parquet files \(other.parquet\) and 3 tars"):
        find_shards("memory://data")

    memory.mv("/data/other.parquet", "/data/web-00001.parquet")
    assert len(find_shards("memory://data")) == 3


def test_image_paths_in_a_remote_table_are_not_opened(folder, memory):
    table = pa.table({"image": ["a.png", "/etc/b.png"], "caption": ["a", "b"]})
    with memory.open("/data/paths.parquet", "wb") as file:
        pq.write_table(table, file)

    assert summary(read("memory://data/paths.parquet")) == [
        ("paths/00000000", "outside_folder"),
        ("paths/00000001", "outside_folder"),
    ]


# Lost connections


@pytest.mark.parametrize("name", ["web-00000.tar", "a.parquet"])
def test_lost_connections_continue_at_the_position(folder, name):
    path = next(folder.rglob(name))
    flaky = register_flaky_files()
    flaky().pipe(f"/{name}", path.read_bytes())
    flaky.drop_after, flaky.num_drops = 300, 3

    assert read(f"flaky://{name}") == read(path)
    assert flaky.num_drops == 0


def test_connection_that_stays_lost_ends_the_run_with_the_address(folder):
    flaky = register_flaky_files()
    flaky().pipe("/a.tar", (folder / "web-00000.tar").read_bytes())
    (shard,) = find_shards("flaky://a.tar")
    flaky.drop_after, flaky.num_drops = 0, 10**6

    with pytest.raises(
        RemoteReadError, match=r"a.tar cannot be read, after 4 attempts \(RuntimeError: connection lost"
    ):
        list(shard.samples())


def test_file_that_changes_while_it_is_read_is_named(folder):
    flaky = register_flaky_files()
    flaky().pipe("/a.tar", (folder / "web-00000.tar").read_bytes())
    file = remote_stream.RemoteStream("flaky://a.tar")
    file.read(512)
    flaky().pipe("/a.tar", (folder / "web-00001.tar").read_bytes() + bytes(10240))
    flaky.drop_after, flaky.num_drops = 0, 1

    with pytest.raises(RemoteReadError, match="has changed while it was read"):
        file.read(512)


# HTTP


def test_tars_over_http_and_the_listing_of_a_folder(folder, server):
    local = read(folder / "web-*.tar")

    assert read(f"{server.address}/") == local
    assert read(f"{server.address}/web-{{00000..00002}}.tar?token=a") == local
    assert {path.partition("?")[0] for _, path, _ in server.requests} == {
        "/",
        *(f"/web-{n:05d}.tar" for n in range(3)),
    }


@pytest.mark.parametrize("has_ranges", [True, False])
def test_dropped_connections_over_http(folder, server, has_ranges, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK_BYTES", 4096)
    server.has_ranges, server.drop_after, server.num_drops = has_ranges, 1500, 3

    assert read(f"{server.address}/web-00001.tar") == read(folder / "web-00001.tar")
    assert server.num_drops == 0


def test_only_the_columns_that_are_used_are_fetched(tmp_path, server):
    images = [encoded_image()] * 40
    noise = [bytes(number % 251 for number in range(seed, seed + 20_000)) for seed in range(40)]
    table = pa.table({"unused": noise, "image": images, "caption": ["a dog"] * 40})
    pq.write_table(table, tmp_path / "wide.parquet", compression="none", use_dictionary=False)

    assert len(read(f"{server.address}/wide.parquet")) == 40
    assert server.num_bytes_asked("wide.parquet") < (tmp_path / "wide.parquet").stat().st_size / 2


def test_server_that_is_gone_is_named(server):
    shards = find_shards(f"{server.address}/web-00000.tar")
    (server.folder / "web-00000.tar").unlink()

    with pytest.raises(RemoteReadError, match=r"web-00000.tar does not exist"):
        list(shards[0].samples())


# Streams


def test_loader_workers_read_each_remote_pair_once(folder):
    stream = PairStream(find_shards(f"file://{folder}/web-*.tar"))
    found = numbers_of(DataLoader(stream, batch_size=None, num_workers=2))

    assert sorted(found) == list(range(30))


def test_loader_workers_read_over_http_after_the_main_process(server):
    stream = PairStream(find_shards(f"{server.address}/web-{{00000..00002}}.tar"))
    assert len(stream.captions(5)) == 5  # the main process has connections before it forks

    assert sorted(numbers_of(DataLoader(stream, batch_size=None, num_workers=2))) == list(range(30))


@pytest.mark.parametrize("num_pairs", [0, 1, 13, 19])
@pytest.mark.parametrize("source", ["web-*.tar", "tables/*.parquet"])
def test_remote_stream_resumes_as_a_local_one(folder, memory, num_pairs, source):
    stopped = make_reader(find_shards(f"memory://data/{source}"), buffer_size=6)
    found = numbers_of(islice(stopped, num_pairs))
    resumed = make_reader(find_shards(f"memory://data/{source}"), buffer_size=6)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    found += numbers_of(resumed)

    assert found == numbers_of(make_reader(find_shards(folder / source), buffer_size=6))


def test_lost_connections_change_nothing_in_a_stream(folder, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK_BYTES", 1024)
    flaky = register_flaky_files()
    for path in folder.glob("*.tar"):
        flaky().pipe(f"/{path.name}", path.read_bytes())
    flaky.drop_after, flaky.num_drops = 12_000, 5
    found = numbers_of(make_reader(find_shards("flaky://*.tar"), buffer_size=6))

    assert found == numbers_of(make_reader(find_shards(folder / "*.tar"), buffer_size=6))
    assert set(Counter(found).values()) == {1}
