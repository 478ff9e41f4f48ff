# SPDX-License-Identifier: BSD-3-Clause
"""Large files of questions and sentences: the same table, skipped records and errors as if parsed as a whole."""

import json
import random
import tracemalloc

import datasets
import pytest

from blip_hf.data.readers import json_files, load_nlvr2, load_vqa, places, record_tables, vqa_official
from blip_hf.data.readers.usable import recorded_files
from blip_hf.data.readers.vqa import has_answers, most_common_answers
from tests.support.files import write_json, write_json_lines


IDS = [*range(12), -3, 2**63 - 1, "x", "4", "ж"]
JUNK = [None, 5, "", "new", True, 2**70, ["a"], [], {}, {"a": [1, {"b": None}]}, 0.5, "\ud800", "../a"]
TEXTS = ["what is it?", "", "ж 🐕 \u2028", "\udc00"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(places, "_ROWS_PER_WRITE", 2)
    monkeypatch.setattr(record_tables, "_ROWS_PER_BATCH", 2)
    return tmp_path / "cache" / "blip_hf"


def outcome(load, max_bytes, monkeypatch, caplog):
    """The table, counts and warnings of a load, or its error."""
    monkeypatch.setattr(json_files, "MAX_BYTES_IN_MEMORY", max_bytes)
    caplog.clear()
    with recorded_files() as files:
        try:
            table = load()
        except ValueError as error:
            return str(error)
    assert bool(table.cache_files) == (max_bytes == 0)
    counts = [(file.name, file.first, file.counts.state_dict()) for file in files]
    return table.features, table[:], counts, caplog.messages


def both(load, monkeypatch, caplog):
    return [outcome(load, size, monkeypatch, caplog) for size in (0, 2**40)]


# Equal to small files


def questions(rng, number=12):
    ids = rng.choices(IDS[: rng.choice([12, len(IDS)])], k=number)
    return [
        {
            "image_id": rng.choice(IDS[:14]),
            "question": rng.choice(TEXTS[: rng.choice([1, 3, 4])]),
            "question_id": own_id,
        }
        for own_id in ids
    ]


def damaged(rng, content, *lists):
    """The content with a bad field in one record, or without it, and its keys in random order."""
    if rng.random() < 0.6:
        record = rng.choice(rng.choice(lists))
        field = rng.choice([*record])
        record[field] = rng.choice(JUNK)
        if rng.random() < 0.3:
            del record[field]
    if rng.random() < 0.2:
        own = rng.choice(lists)
        own[rng.randrange(len(own))] = rng.choice(JUNK)
    return dict(rng.sample([*content.items()], len(content))) if isinstance(content, dict) else content


def official(rng):
    asked = questions(rng)
    answers = [
        {
            "answers": [{"answer": rng.choice(TEXTS[:3]), "answer_id": i} for i in range(rng.choice([1, 3]))],
            "image_id": question["image_id"],
            "question_id": question["question_id"],
            **({"extra": 1} if rng.random() < 0.1 else {}),
        }
        for question in rng.sample([*asked, *asked[:3]], len(asked) + 3)
    ]
    header = {"info": {"year": [2017]}, "data_subtype": "val2014"} if rng.random() < 0.5 else {"license": [{}]}
    return (
        damaged(rng, {**header, "questions": asked}, asked),
        damaged(rng, {"annotations": answers, "data_type": "mscoco"}, answers),
    )


def plain(rng):
    records = questions(rng)
    has_ids, has_images = rng.random() < 0.5, rng.random() < 0.5
    for number, record in enumerate(records):
        if not has_ids:
            del record["question_id"]
        if has_images:
            record["image"] = f"{number if rng.random() < 0.97 else 3}.jpg"
        record |= rng.choice([{}, {"answer": "a"}, {"answers": ["b", "a", "b"]}, {"answer": [{"answer": "c"}]}])
        record |= rng.choice([{}, {}, {"dataset": "vg"}, {"more": {"a": []}}])
    records = damaged(rng, records, records)
    return records if rng.random() < 0.7 else {"name": [], "data": records}


def genome(rng):
    records = [
        {
            "id": rng.choice(IDS),
            "qas": [{"qa_id": rng.choice(IDS[:13]), "question": rng.choice(TEXTS), "answer": "a"}]
            * rng.choice([0, 2]),
        }
        for _ in range(6)
    ]
    return damaged(rng, records, records[1:])


def sentences(rng):
    records = [
        rng.choice(
            [
                {"images": [rng.choice(["a.png", "../a.png"]), "b.png"]},
                {"identifier": f"dev-{number}-0-1"},
                {"identifier": f"train-{number}-0-1", "directory": 54},
            ]
        )
        | {"sentence": rng.choice(TEXTS), "label": rng.choice(["True", "false", True])}
        for number in range(6)
    ]
    return damaged(rng, records, records)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", [plain, genome])
def test_random_lists_of_questions_are_read_the_same(make, seed, tmp_path, monkeypatch, caplog):
    rng = random.Random(seed)
    for number in range(8):
        source = write_json(tmp_path / f"{number}.json", make(rng))
        answer_lists = rng.choice(["votes", "set"])
        large, small = both(lambda: load_vqa(source, answer_lists=answer_lists), monkeypatch, caplog)  # noqa: B023
        assert large == small, source.read_text()


@pytest.mark.parametrize("seed", range(4))
def test_random_files_of_vqa_are_read_the_same(seed, tmp_path, monkeypatch, caplog):
    rng = random.Random(seed)
    for number in range(8):
        asked, answers = official(rng)
        source = write_json(tmp_path / f"{number}.json", asked)
        annotations = write_json(tmp_path / f"{number}_answers.json", answers) if rng.random() < 0.8 else None
        large, small = both(lambda: load_vqa(source, annotations=annotations), monkeypatch, caplog)  # noqa: B023
        assert large == small, (source.read_text(), annotations and annotations.read_text())


@pytest.mark.parametrize("seed", range(4))
def test_random_sentences_are_read_the_same(seed, tmp_path, monkeypatch, caplog):
    rng = random.Random(seed)
    for number in range(8):
        records = sentences(rng)
        write = write_json_lines if isinstance(records[0], dict) and rng.random() < 0.5 else write_json
        source = write(tmp_path / f"{number}.json", records)
        large, small = both(lambda: load_nlvr2(source), monkeypatch, caplog)  # noqa: B023
        assert large == small, source.read_text()


QUESTION = {"image": "a.jpg", "question": "What?", "question_id": 7, "answer": "a"}


def test_questions_of_several_files_have_ids_of_one_type(tmp_path, monkeypatch, caplog):
    sources = [
        write_json(tmp_path / "a.json", [QUESTION] * 3),
        write_json_lines(tmp_path / "b.jsonl", [QUESTION, QUESTION | {"question_id": "x"}]),
        write_json(tmp_path / "c.json", [{"image": name, "question": "Where?"} for name in "ab"]),
    ]
    large, small = both(lambda: load_vqa(sources), monkeypatch, caplog)
    assert large == small
    assert large[1]["question_id"] == ["7", "7", "7", "7", "x", "a", "b"]
    large, small = both(lambda: load_vqa(sources[0]), monkeypatch, caplog)
    assert large == small
    assert large[1]["question_id"] == [7, 7, 7]


@pytest.mark.parametrize("content", [[], {}, {"questions": []}, {"data": {}}, "a", 5, None, {"annotations": [1]}])
def test_files_without_questions_are_refused_the_same_way(content, tmp_path, monkeypatch, caplog):
    source = write_json(tmp_path / "a.json", content)
    for load in (load_vqa, load_nlvr2):
        large, small = both(lambda: load(source), monkeypatch, caplog)  # noqa: B023
        assert large == small
    asked = write_json(tmp_path / "b.json", {"questions": [QUESTION]})
    large, small = both(lambda: load_vqa(asked, annotations=source), monkeypatch, caplog)
    assert large == small
    assert isinstance(large, str)


def test_text_that_is_not_json_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "MAX_BYTES_IN_MEMORY", 0)
    for name, text in (("a.json", '[{"question": 1}'), ("a.json", '{"questions": [1 2]}'), ("a.jsonl", "{}\n{")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name} cannot be parsed"):
            load_vqa(tmp_path / name)


# Stored tables


def test_the_second_load_reads_only_the_arrow_file(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "MAX_BYTES_IN_MEMORY", 0)
    asked = {"questions": [{"image_id": 5, "question": "What?", "question_id": 7}]}
    answers = {"annotations": [{"question_id": 7, "answers": ["a"]}]}
    sources = [write_json(tmp_path / name, content) for name, content in (("a.json", asked), ("b.json", answers))]
    sentence = write_json(tmp_path / "c.json", [{"images": ["a.png", "b.png"], "sentence": "Two.", "label": True}])
    tables = [load_vqa(sources[0], annotations=sources[1])[:], load_nlvr2(sentence)[:]]
    assert {path.suffix for path in cache.iterdir()} == {".arrow", ".json", ".lock"}
    monkeypatch.setattr(json_files, "_Window", None)
    assert [load_vqa(sources[0], annotations=sources[1])[:], load_nlvr2(sentence)[:]] == tables


def test_changed_annotations_and_images_are_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "MAX_BYTES_IN_MEMORY", 0)
    asked = write_json(tmp_path / "a.json", {"questions": [{"image_id": "x", "question": "?", "question_id": 1}]})

    def load(answer):
        content = {"annotations": [{"question_id": 1, "answers": [answer]}]}
        annotations = write_json(tmp_path / "b.json", json.loads(json.dumps(content)))
        (row,) = load_vqa(asked, annotations=annotations, image_root=tmp_path / "images")
        return row["answers"], row["image"].rsplit("/", 1)[-1]

    assert load("yes") == (["yes"], "x.jpg")
    assert load("no") == (["no"], "x.jpg")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.png").touch()
    assert load("no") == (["no"], "x.png")


def test_answers_are_counted_without_all_of_them_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "MAX_BYTES_IN_MEMORY", 0)
    records = [QUESTION | {"answer": answers} for answers in (["x", "y"], ["y"])]
    table = load_vqa(write_json(tmp_path / "a.json", [{"image": "a", "question": "?", "question_id": 1}, *records]))
    assert has_answers(table)
    assert most_common_answers(table) == ["y", "x"]
    assert not has_answers(table.select([0]))


@pytest.mark.parametrize("file_format", ["vqa", "names", "nlvr2"])
def test_memory_does_not_grow_with_the_file(file_format, tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "MAX_BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(json_files, "_CHUNK", 1 << 14)
    monkeypatch.setattr(places, "_ROWS_PER_WRITE", 1000)
    monkeypatch.setattr(record_tables, "_ROWS_PER_BATCH", 500)

    def peak(number):
        path, annotations = tmp_path / f"{number}.json", tmp_path / f"{number}_answers.json"
        if file_format == "vqa":
            asked = [{"image_id": i, "question": f"What is {i}?", "question_id": i} for i in range(number)]
            write_json(path, {"questions": asked})
            answers = [{"question_id": i, "answers": [{"answer": "yes"}] * 10} for i in reversed(range(number))]
            write_json(annotations, {"annotations": answers})
        elif file_format == "names":
            write_json(path, [{"image": f"{i}.jpg", "question": f"What is {i}?"} for i in range(number)])
        else:
            images = {"images": ["a.png", "b.png"], "label": "True"}
            write_json(path, [{**images, "sentence": f"There are {i} dogs."} for i in range(number)])
        tracemalloc.start()
        try:
            if file_format == "nlvr2":
                assert len(load_nlvr2(path)) == number
            else:
                own = {"annotations": annotations} if file_format == "vqa" else {}
                assert len(load_vqa(path, **own)) == number
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small, large = peak(2_000), peak(6_000)
    # Bytes a record. As Python objects questions with ten answers take more than 5,000, others more than 700.
    assert large - small < (1_500 if file_format == "vqa" else 100) * 4_000


def test_annotations_are_not_parsed_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "MAX_BYTES_IN_MEMORY", 0)
    monkeypatch.setattr("blip_hf.data.readers.records.read_json", None)
    asked, answers = {"questions": [QUESTION | {"image_id": 1}]}, {"annotations": [{"question_id": 7, "answers": "a"}]}
    source, annotations = write_json(tmp_path / "a.json", asked), write_json(tmp_path / "b.json", answers)
    assert load_vqa(source, annotations=annotations)["answers"][:] == [["a"]]
    assert vqa_official.is_official(json_files.read_json_outline(source))
