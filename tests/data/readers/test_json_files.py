# SPDX-License-Identifier: BSD-3-Clause
"""Streamed JSON lists: equal to the parsed file, from any record on, in constant memory."""

import json
import tracemalloc

import pytest

from blip_hf.data.readers import find_shards, json_files
from blip_hf.data.readers.json_files import JsonArray, iterate_json_lines, iterate_json_list, read_json_outline


RECORDS = [
    {"image": "1.jpg", "caption": 'a "quoted", [bracketed] {braced} \\ text'},
    {"image": "ж.jpg", "caption": "две собаки 🐕", "more": [1, [2, {"a": None}]]},
    12,
    123.5e-3,
    "text",
    True,
    None,
    [],
    {},
    {"image": "\ud800 alone", "caption": "\u2028"},
]


@pytest.fixture(params=[1, 2, 3, 7, 64, 1 << 20])
def chunk(request, monkeypatch):
    """For any buffer size, also within characters and numbers."""
    monkeypatch.setattr(json_files, "_CHUNK", request.param)
    return request.param


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("is_ascii", [True, False])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_streamed_list_equals_the_parsed_list(tmp_path, chunk, indent, is_ascii, mark):
    records = RECORDS if is_ascii else RECORDS[:-1]  # a lone surrogate has no UTF-8
    path = tmp_path / "a.json"
    path.write_text(f"{mark} \n{json.dumps(records, indent=indent, ensure_ascii=is_ascii)}\r\n ", encoding="utf-8")
    assert [record for _, record in iterate_json_list(path)] == records


def test_list_resumes_at_any_record(tmp_path, chunk):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(RECORDS[:-1], ensure_ascii=False, indent=2), encoding="utf-8")
    located = list(iterate_json_list(path))
    for row, (start, _) in enumerate(located):
        assert list(iterate_json_list(path, start)) == located[row:]


def test_json_lines_resume_at_any_line(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = ['\ufeff{"a": "ж"}', "", "no json", '{"b": "\u2028"}', "  ", "3"]
    path.write_bytes("\r\n".join(lines).encode() + b'\n{"c": "\xff"}')
    located = list(iterate_json_lines(path))
    records = [record for _, record in located]
    assert isinstance(records.pop(1), ValueError)
    assert records == [{"a": "ж"}, {"b": "\u2028"}, 3, {"c": "\ufffd"}]
    for row, (start, record) in enumerate(located):
        rest = list(iterate_json_lines(path, start))
        assert [offset for offset, _ in rest] == [offset for offset, _ in located[row:]]
        assert isinstance(record, Exception) or rest[0][1] == record


@pytest.mark.parametrize("text", ["[]", " [ ] "])
def test_a_list_may_be_empty(tmp_path, chunk, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    assert list(iterate_json_list(path)) == []


@pytest.mark.parametrize(
    "text", ["", "{}", "[1", "[1,", "[1,]", "[1 2]", "[1] 2", '[{"a": 1}\n{"b": 2}]', "[" * 100_000, '["a', "[nul]"]
)
def test_non_list_raises_with_the_file_and_the_remedy(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.json cannot be parsed after byte \d+ .*\.jsonl"):
        list(iterate_json_list(path))


OBJECT = {
    "info": {"year": 2017, "more": {"urls": ["a", {}], "empty": {}}},
    "images": RECORDS[:-1],
    "none": [],
    'ж " :': 12,
    "text": "a, {b} [c]",
    "annotations": [[1], 2.5],
    "last": None,
}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_streamed_object_equals_the_parsed_object(tmp_path, chunk, indent, mark):
    path = tmp_path / "a.json"
    path.write_text(f"{mark} \n{json.dumps(OBJECT, indent=indent, ensure_ascii=False)}\r\n ", encoding="utf-8")
    content = read_json_outline(path)
    assert list(content) == list(OBJECT)
    lists = {key: list(value) if isinstance(value, JsonArray) else value for key, value in content.items()}
    assert lists == OBJECT | {"info": {}}
    assert content["images"].first == RECORDS[0]
    text = path.read_bytes()
    assert [json.loads(text[start:stop]) for start, stop, _ in content["images"].located()] == RECORDS[:-1]


def test_of_equal_keys_the_last_counts(tmp_path, chunk):
    (tmp_path / "a.json").write_text('{"a": [1, 2], "b": {}, "a": [3]}')
    content = read_json_outline(tmp_path / "a.json")
    assert list(content) == ["a", "b"]
    assert list(content["a"]) == [3]


@pytest.mark.parametrize("text", ["{}", " { } ", "[]", "5", '"a"', "null"])
def test_values_without_records_are_equal_to_the_parsed_ones(tmp_path, chunk, text):
    (tmp_path / "a.json").write_text(text)
    assert read_json_outline(tmp_path / "a.json") == json.loads(text)


def test_a_list_at_the_top_is_streamed(tmp_path, chunk):
    (tmp_path / "a.json").write_text(json.dumps(RECORDS))
    records = read_json_outline(tmp_path / "a.json")
    assert isinstance(records, JsonArray)
    assert list(records) == RECORDS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1, 2",
        '{"a"',
        '{"a":',
        '{"a": 1',
        '{"a": 1,',
        '{"a": 1,}',
        '{"a" 1}',
        "{1: 2}",
        '{"a": 1 "b": 2}',
        '{"a": [1 2]}',
        '{"a": [1}',
        '{"a": {"b": }}',
        '{"a": 1} 2',
        '{"a": ' * 100_000,
        '{"a": "b',
        '{"a": nul}',
    ],
)
def test_an_invalid_file_raises_with_its_name_and_the_byte(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json cannot be parsed after byte \d+ .*Expected JSON in UTF-8"):
        read_json_outline(tmp_path / "a.json")


@pytest.mark.parametrize("content", [b'["caf\xe9"]', b'{"a": "caf\xe9"}', b'["' + b"a" * 99_999 + b'", "\xe9"]'])
def test_non_utf8_raises_with_the_file(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json cannot be parsed .*codec.* UTF-8"):
        find_shards(str(path))


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_memory_of_shards_does_not_grow_with_the_list(tmp_path, suffix, monkeypatch):
    """Ten times the records need no more memory, except for three numbers per shard."""
    monkeypatch.setattr(json_files, "_CHUNK", 1 << 14)
    peaks = []
    for size in (2_000, 20_000):
        records = [
            {"image": f"{i}.jpg", "caption": f"a picture of thing number {i} " + "of many " * 8} for i in range(size)
        ]
        path = tmp_path / f"{size}.{suffix}"
        path.write_text(json.dumps(records) if suffix == "json" else "\n".join(map(json.dumps, records)))
        del records
        tracemalloc.start()
        shards = find_shards(str(path), shard_size=1000)
        num_samples = sum(1 for shard in shards for _ in shard.read())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert num_samples == size
    assert peaks[1] < peaks[0] + 500_000  # the parsed records take about 10 MB
