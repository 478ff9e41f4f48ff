# SPDX-License-Identifier: BSD-3-Clause
"""Large lists become memory-mapped Arrow files with the same records as small lists in memory."""

import json
import random
import subprocess
import sys
import tracemalloc

import datasets
import pytest

from blip_hf.data.readers import arrow_cache, json_files, large_lists, lists, load_pairs
from blip_hf.data.readers.usable import recorded_files
from tests.support.files import write_json, write_json_lines


PATH_RECORDS = [{"image": f"{i % 4}.jpg", "caption": [f"a {i}", f"b {i}"]} for i in range(9)]
RECORDS = {
    "paths": PATH_RECORDS,
    "COCO names": [{"image": f"{i % 4:012d}.jpg", "caption": f"a {i}"} for i in range(9)],
    "numbers": [{"image": f"{i}.jpg", "caption": f"a {i}", "image_id": 7 * (i // 2)} for i in range(9)],
    "negative numbers": [{"image": f"{i}.jpg", "caption": f"a {i}", "image_id": -(i // 2)} for i in range(9)],
    "texts": [{"image": f"{i}.jpg", "caption": f"a {i}", "image_id": f"x{i // 2}"} for i in range(9)],
    "some ids": [{"image": f"{i // 2}.jpg", "caption": f"a {i}", "image_id": i if i % 2 else None} for i in range(9)],
    "clashing ids": [{"image": f"{i}.jpg", "caption": f"a {i}", "image_id": i // 2 or None} for i in range(9)],
    "equal numbers and texts": [
        {"image": f"{i}.jpg", "caption": "a", "image_id": 4 if i % 2 else "4"} for i in range(9)
    ],
    "numbers and texts": [{"image": f"{i}.jpg", "caption": "a", "image_id": i if i % 2 else "x"} for i in range(9)],
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Makes all lists large, and stores them in a new cache."""
    monkeypatch.setattr(json_files, "MAX_BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "blip_hf"


def both_ways(source, monkeypatch, **options):
    monkeypatch.setattr(json_files, "MAX_BYTES_IN_MEMORY", 2**40)
    in_memory = load_pairs(source, **options)
    monkeypatch.setattr(json_files, "MAX_BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(large_lists, "_ROWS_PER_BATCH", 2)
    return load_pairs(source, **options), in_memory


@pytest.mark.parametrize("records", RECORDS.values(), ids=RECORDS)
@pytest.mark.parametrize("is_joined", [False, True])
def test_both_give_the_same_table(records, is_joined, cache, tmp_path, monkeypatch):
    source = write_json(tmp_path / "a.json", records)
    if is_joined:
        source = [source, write_json_lines(tmp_path / "b" / "b.jsonl", records)]
    large, small = both_ways(source, monkeypatch)
    assert large.features == small.features
    assert large[:] == small[:]
    assert large.cache_files
    assert not small.cache_files


def random_records(rng):
    """Records with ids of several types, missing and equal ones, other keys, and at times a bad field."""
    ids = [[0, 1, 2, 3], [0, "", "0", 4, "4", None], [-1, 2**63 - 1, "ж", 7]][rng.randrange(3)]
    records = []
    for number in range(12):
        record = {"image": rng.choice([f"{number}.jpg", "a.jpg", "000000000004.jpg", "../b.jpg"])}
        record[rng.choice(["caption", "captions", "text"])] = rng.choice(["a cat", "", ["ж 🐕", "\u2028"]])
        record |= rng.choice([{}, {"image_id": rng.choice(ids)}, {"image_id": rng.choice(ids)}, {"more": [{"a": []}]}])
        if rng.random() < 0.05:
            record[rng.choice([*record])] = rng.choice([None, True, 2**70, [], {}, "\ud800", 0.5])
        records.append(dict(rng.sample([*record.items()], len(record))))
    return records if rng.random() < 0.8 else [*records, rng.choice([None, 5, "a"])]


@pytest.mark.parametrize("seed", range(5))
def test_both_give_the_same_for_random_lists(seed, cache, tmp_path, monkeypatch, caplog):
    rng = random.Random(seed)
    monkeypatch.setattr(large_lists, "_ROWS_PER_BATCH", 2)
    for number in range(8):
        records = random_records(rng)
        source = write_json(tmp_path / f"{number}.json", records)
        if rng.random() < 0.3:
            source = [source, write_json_lines(tmp_path / f"{number}.jsonl", random_records(rng))]
        results = []
        for size in (0, 2**40):
            monkeypatch.setattr(json_files, "MAX_BYTES_IN_MEMORY", size)
            caplog.clear()
            try:
                table = load_pairs(source)
                results.append((table.features, table[:], caplog.messages))
            except ValueError as error:
                results.append(str(error))
        assert results[0] == results[1], records


def test_the_second_load_reads_only_the_arrow_file(cache, tmp_path, monkeypatch):
    source = write_json(tmp_path / "a.json", PATH_RECORDS)
    first = load_pairs(source)
    monkeypatch.setattr(lists, "iterate_json_list", None)
    assert load_pairs(source)[:] == first[:]
    with pytest.raises(TypeError):
        load_pairs(source, image_root=tmp_path.parent)
    assert {path.suffix for path in cache.iterdir()} <= {".arrow", ".json", ".lock"}


def test_a_changed_list_is_read_again(cache, tmp_path):
    source = write_json(tmp_path / "a.json", PATH_RECORDS)
    load_pairs(source)
    write_json(source, PATH_RECORDS[:2])
    assert load_pairs(source)["caption"][:] == ["a 0", "b 0", "a 1", "b 1"]


def test_each_load_reports_the_skipped_records(cache, tmp_path, caplog):
    source = write_json(
        tmp_path / "a.json", [*PATH_RECORDS, {"image": "a.jpg"}, {"image": "../a.jpg", "caption": "a"}]
    )
    for _ in range(2):
        caplog.clear()
        with recorded_files() as files:
            load_pairs(source)
        assert "a.json: skipped 1 bad_record, 1 outside_folder, the first a/00000009 (" in caplog.text
        assert dict(files[0].counts.by_reason) == {"bad_record": 1, "outside_folder": 1}
        assert files[0].counts.num_usable == 9


@pytest.mark.parametrize(
    ("content", "message"), [("[1, 2]", "record 0 is a int"), ("[" + " " * 9 + "]", "no records")]
)
def test_a_list_without_usable_records_leaves_no_file(content, message, cache, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_pairs(tmp_path / "a.json")
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []


def test_a_line_that_cannot_be_parsed_is_named(cache, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"image": "a.jpg", "caption": "a"}\n{"image": "\xff"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl cannot be parsed: record 1: .*utf-8"):
        load_pairs(tmp_path / "a.jsonl")


def test_a_cache_that_is_not_writable_is_replaced(cache, tmp_path, caplog):
    cache.parent.write_text("a file in the place of the folder")
    source = write_json(tmp_path / "a.json", PATH_RECORDS)
    assert len(load_pairs(source)) == 18
    assert f"The cache {cache} is not writable" in caplog.text
    assert "Set HF_DATASETS_CACHE" in caplog.text
    arrow_cache._temporary_folder.cache_clear()


def test_processes_that_load_the_same_list_convert_it_once(tmp_path):
    source = write_json(tmp_path / "a.json", [*PATH_RECORDS * 20, {"image": 5}])
    code = (
        "import datasets, os, sys\n"
        "from blip_hf.data.readers import arrow_cache, json_files, large_lists, load_pairs\n"
        f"datasets.config.HF_DATASETS_CACHE = {str(tmp_path / 'cache')!r}\n"
        "json_files.MAX_BYTES_IN_MEMORY = 0\n"
        "write_rows = large_lists._write_rows\n"
        "large_lists._write_rows = lambda *args: print('converted') or write_rows(*args)\n"
        f"print(len(load_pairs({str(source)!r})))\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0].split() for process in processes]
    assert sorted(outputs) == [["360"], ["converted", "360"]]


def test_memory_does_not_grow_with_the_list(cache, tmp_path):
    def peak(num_records):
        records = ({"image": f"{i:08d}.jpg", "caption": f"a photo of dog number {i}"} for i in range(num_records))
        source = write_json_lines(tmp_path / f"{num_records}.jsonl", records)
        tracemalloc.start()
        try:
            assert len(load_pairs(source)) == num_records
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small, large = peak(20_000), peak(60_000)
    assert large - small < 20 * 40_000  # bytes a record; as Python objects they take some 500


def test_files_of_a_killed_process_are_removed(cache, tmp_path):
    source = write_json(tmp_path / "a.json", PATH_RECORDS)
    load_pairs(source)
    (whole,) = cache.glob("*.arrow")
    for name in (f"{whole.name}.7.part", f"{whole.name}.7.part.rows"):
        whole.rename(cache / name) if whole.exists() else (cache / name).write_text("half")
    assert len(load_pairs(source)) == 18
    assert [path for path in cache.iterdir() if ".part" in path.name] == []


def test_counts_are_json(cache, tmp_path):
    load_pairs(write_json(tmp_path / "a.json", PATH_RECORDS))
    (counts,) = cache.glob("*.json")
    assert json.loads(counts.read_text())[0]["counts"]["num_usable"] == 9
