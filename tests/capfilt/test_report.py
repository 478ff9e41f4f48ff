# SPDX-License-Identifier: BSD-3-Clause
"""The report of a CapFilt run: its statistics against values computed by hand, its page, and its reproducibility."""

import json
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from blip_hf.capfilt import statistics as capfilt_statistics
from blip_hf.capfilt.filters import Rule
from blip_hf.capfilt.report import build_report, write_report
from blip_hf.capfilt.report_examples import NUM_TEXTS, ExampleSheet, add_thumbnails
from blip_hf.capfilt.scores import SCHEMA, RunFolder, write_scores
from blip_hf.capfilt.statistics import ScoreStatistics, TextStatistics, word_changes
from blip_hf.data.readers.samples import Sample, Shard
from blip_hf.data.scenes import Scenes
from blip_hf.evaluation.filtering import filter_metrics
from tests.support.files import write_json
from tests.support.images import encoded_image, write_image
from tests.support.scores import score_row, table_of


RULE = {"threshold": 0.5, "keep_share": None, "best_per_image": False, "sources": ["web", "synthetic"], "by": "itm"}


def score_table(rows: Sequence[tuple[str, int, str, str, float, float]]) -> pa.Table:
    """Rows of sample, number of the text, text, source, ITM and ITC. The sample id is also the image id."""
    return table_of(
        score_row(sample, sample.split("/")[-1].lstrip("0") or "0", text, source, itm, itc=itc, text_index=index)
        for sample, index, text, source, itm, itc in rows
    )


def write_run(folder, tables, *, source="scenes:4", rule=RULE, skipped=()):
    run = RunFolder(folder)
    for name, table in tables.items():
        write_scores(table, run.scores(name))
        run.skipped(name).parent.mkdir(exist_ok=True)
        write_json(run.skipped(name), list(skipped))
    settings = {"source": source, "image_root": None, "shard_size": 2, "rule": rule, "models": {"captioner": "a<b>"}}
    write_json(run.settings, settings)
    return folder


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """Two shards of two images, each with a web text and a synthetic one."""
    first = [
        ("scenes/00000000", 0, "A red ring.", "web", 0.9, 0.4),
        ("scenes/00000000", 0, "a big red ring", "synthetic", 0.5, 0.3),
        ("scenes/00000001", 0, "Buy NOW", "web", 0.1, -0.2),
        ("scenes/00000001", 0, "a star", "synthetic", 0.95, 0.3),
    ]
    second = [
        ("scenes/00000002", 0, "a blue ring", "web", 0.49, 0.0),
        ("scenes/00000002", 0, "a ring", "synthetic", 0.3, 0.1),
        ("scenes/00000003", 0, "two stars", "web", 0.7, 0.2),
        ("scenes/00000003", 0, "two stars", "synthetic", 0.8, 0.2),
    ]
    skipped = [{"sample_id": "x", "reason": "empty_text", "detail": ""}]
    return write_run(
        tmp_path_factory.mktemp("small"),
        {"scenes-00000": score_table(first), "scenes-00001": score_table(second)},
        skipped=skipped,
    )


@pytest.fixture(scope="module")
def small_page(small_run):
    return write_report(small_run)


def test_totals_match_values_computed_by_hand(small_run):
    totals = build_report(small_run)["totals"]
    assert (totals["num_images"], totals["num_images_kept"], totals["num_shards"]) == (4, 3, 2)
    assert (totals["num_texts"], totals["num_kept"], totals["kept_share"]) == (8, 5, 5 / 8)
    web, synthetic = totals["by_source"]["web"], totals["by_source"]["synthetic"]
    # Web: 0.9 and 0.7 of 0.9, 0.1, 0.49, 0.7. Synthetic: 0.5, 0.95 and 0.8 of four.
    assert (web["num_texts"], web["num_kept"], web["kept_share"]) == (4, 2, 0.5)
    assert (synthetic["num_texts"], synthetic["num_kept"], synthetic["kept_share"]) == (4, 3, 0.75)
    assert web["mean_itm"] == pytest.approx((0.9 + 0.1 + 0.49 + 0.7) / 4, abs=1e-6)
    assert totals["skipped"] == {"empty_text": 2}


def test_curve_and_histogram_match_values_computed_by_hand(small_run):
    report = build_report(small_run)
    curve = report["kept_share_by_threshold"]
    shares = dict(zip(curve["thresholds"], curve["kept_shares"]["web"], strict=True))
    assert [shares[t] for t in (0.0, 0.1, 0.11, 0.49, 0.5, 0.7, 0.9, 0.91)] == [1, 1, 0.75, 0.75, 0.5, 0.5, 0.25, 0]
    assert shares[0.5] == report["totals"]["by_source"]["web"]["kept_share"]
    histogram = report["histograms"]["itc"]
    lefts = [histogram["edges"][bin] for bin in np.flatnonzero(histogram["counts"]["web"])]
    assert lefts == [-0.2, 0.0, 0.2, 0.4]


def test_texts_and_words_match_values_computed_by_hand(small_run):
    report = build_report(small_run)
    web, kept = report["texts"]["web"], report["texts"]["kept"]
    # a red ring | buy now | a blue ring | two stars: ten words, eight of them distinct.
    assert (web["num_words"], web["mean_length"], web["num_distinct_words"]) == (10, 2.5, 8)
    assert web["type_token_ratio"] == 0.8
    assert web["lengths"][:4] == [0, 0, 2, 2]
    # a red ring | two stars | a big red ring | a star | two stars
    assert (kept["num_texts"], kept["num_words"], kept["num_distinct_words"]) == (5, 13, 7)
    added = {word["word"]: word for word in report["words"]["added"]}
    assert added["stars"] == {"word": "stars", "before": 1000 / 10, "after": 2000 / 13}
    assert {word["word"] for word in report["words"]["dropped"]} == {"blue", "buy", "now", "ring"}


def test_report_uses_the_filter_of_the_run(tmp_path, small_run):
    tables = {path.stem: pa.parquet.read_table(path) for path in RunFolder(small_run).score_files()}
    run = write_run(tmp_path / "other", tables, rule={**RULE, "keep_share": 0.25, "sources": ["web"]})
    report = build_report(run)
    assert {source: part["num_kept"] for source, part in report["totals"]["by_source"].items()} == {
        "web": 1,
        "synthetic": 0,
    }
    assert report["cutoffs"] == {"web": pytest.approx(0.9)}


def test_scene_texts_are_labelled_by_the_scene(tmp_path):
    scenes = Scenes(8, noise_rate=0.45)
    rng = np.random.default_rng(0)
    itm = rng.random(8).tolist()
    rows = [(f"scenes/{i:08d}", 0, text, "web", itm[i], 0.0) for i, text in enumerate(scenes.captions())]
    tables = {"scenes-00000": score_table(rows[:4]), "scenes-00001": score_table(rows[4:])}
    run = write_run(tmp_path / "run", tables, source="scenes:8:0.45")
    expected = filter_metrics(np.float32(itm), [not scene["is_swapped"] for scene in scenes])
    assert 0 < expected["num_right"] < 8
    assert build_report(run)["filter"] == expected


def list_run(tmp_path):
    """A JSON list of five images: the second has no words, the fourth no file, and the last two texts share an image."""
    for i in (0, 1, 2, 4):
        write_image(tmp_path / f"{i}.png", (50 * i, 0, 0))
    captions = ["one", "...", "three", "four", "five", "six"]
    records = [{"image": f"{min(i, 4)}.png", "caption": caption} for i, caption in enumerate(captions)]
    records[4]["image_id"] = records[5]["image_id"] = 9
    write_json(tmp_path / "web.json", records)
    ids = {"one": "web/00000000", "three": "web/00000002", "five": "web/00000004", "six": "web/00000004"}
    images = {"one": "0.png", "three": "2.png", "five": "9", "six": "9"}
    itm = {"one": 0.9, "three": 0.8, "five": 0.7, "six": 0.1}
    rows = [score_row(ids[text], images[text], text, "web", itm[text], text_index=int(text == "six")) for text in itm]
    tables = {f"web-{i:05d}": table_of(part) for i, part in enumerate((rows[:1], rows[1:2], rows[2:]))}
    return write_run(tmp_path / "run", tables, source=str(tmp_path / "web.json"))


def test_labels_stay_aligned_when_records_are_skipped(tmp_path):
    run = list_run(tmp_path)
    (tmp_path / "labels.json").write_text("[1, 0, 0, 1, 1, 0]")
    report = build_report(run, labels=tmp_path / "labels.json")
    # Scored are "one" (right), "three" (swapped), "five" (right) and "six" (swapped).
    assert report["filter"] == filter_metrics([0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0])
    assert build_report(run)["filter"] is None


def test_labels_stay_aligned_when_a_text_of_a_record_is_skipped(tmp_path):
    write_image(tmp_path / "0.png")
    record = {"image": "0.png", "caption": ["one", "...", "two"], "image_id": 7}
    write_json(tmp_path / "web.json", [record])
    rows = [("web/00000000", 0, "one", "web", 0.9, 0.0), ("web/00000000", 1, "two", "web", 0.1, 0.0)]
    table = score_table(rows)
    table = table.set_column(table.schema.get_field_index("image_id"), SCHEMA.field("image_id"), pa.array(["7", "7"]))
    run = write_run(tmp_path / "run", {"web-00000": table}, source=str(tmp_path / "web.json"))
    report = build_report(run, labels=[1, 0, 0])
    assert report["filter"] == filter_metrics([0.9, 0.1], [1, 0])


def test_mismatched_labels_raise(tmp_path):
    run = list_run(tmp_path)
    with pytest.raises(ValueError, match="5 labels, but 6 records"):
        build_report(run, labels=[1, 0, 0, 1, 1])
    records = json.loads((tmp_path / "web.json").read_text())
    records[2]["caption"] = "another"
    write_json(tmp_path / "web.json", records)
    with pytest.raises(ValueError, match="The source of the run lacks the text 'three'"):
        build_report(run, labels=[1, 0, 0, 1, 1, 0])


def test_page_and_json_are_self_contained_and_have_the_same_statistics(small_run, small_page):
    page, report = small_page.read_text(), json.loads((small_run / "report.json").read_text())
    assert small_page == small_run / "report.html"
    assert report.keys() == build_report(small_run).keys()
    assert "http" not in page
    urls = re.findall(r'(?:src|href|srcset)="([^"]{0,22})', page)
    assert len(urls) == 2 * 4 + len(report["examples"])  # four charts in light and dark, and the images
    assert all(re.match(r"data:image/(png|jpeg);base6", url) for url in urls)
    assert '<td>web</td><td>4</td><td>2</td><td class="value">50.0%</td>' in page
    assert "text without words" in page
    assert page.count("<figure class=") == len(report["examples"]) == 8
    assert "a&lt;b&gt;" in page
    assert "a<b>" not in page


def test_report_is_reproducible_byte_for_byte(small_run, small_page):
    first = small_page.read_bytes()
    assert write_report(small_run).read_bytes() == first


def test_report_without_its_source_lacks_only_the_images(small_run, tmp_path):
    tables = {path.stem: pa.parquet.read_table(path) for path in RunFolder(small_run).score_files()}
    page = write_report(write_run(tmp_path / "run", tables, source=str(tmp_path / "gone.tar"))).read_text()
    assert "<figure class=" not in page
    assert "50.0%" in page


def test_run_without_usable_records_has_a_report(tmp_path):
    run = write_run(tmp_path / "run", {"scenes-00000": SCHEMA.empty_table()}, skipped=[{"reason": "bad_record"}])
    report = build_report(run)
    assert (report["totals"]["num_texts"], report["totals"]["kept_share"], report["filter"]) == (0, None, None)
    assert "not well-formed" in write_report(run).read_text()


def test_folder_without_scores_raises(tmp_path):
    with pytest.raises(ValueError, match="holds no scores"):
        build_report(tmp_path)


def many_scores(num_texts: int) -> pa.Table:
    itm = np.random.default_rng(0).random(num_texts)
    rows = [(f"s/{i:05d}", 0, f"text {i}", "web", float(score), 0.0) for i, score in enumerate(itm)]
    return score_table(rows)


def examples_of(tables: dict[str, pa.Table]) -> list:
    sheet = ExampleSheet(list(tables), {"web": 0.5}, Rule())
    for name, table in tables.items():
        sheet.add(name, table, table["itm"].to_numpy() >= 0.5)
    return sheet.examples()


def test_examples_include_texts_near_and_far_from_the_threshold():
    examples = examples_of({"a": many_scores(2000)})
    distances = {"near": (0, 0.016), "far": (0.484, 0.5)}
    assert {(example.place, example.is_kept) for example in examples} == {
        (place, is_kept) for place in distances for is_kept in (True, False)
    }
    for example in examples:
        low, high = distances[example.place]
        assert low <= abs(example.itm - 0.5) <= high
        assert example.is_kept == (example.itm >= 0.5)


def test_choice_of_examples_does_not_depend_on_order():
    table = many_scores(300)
    shuffled = table.take(np.random.default_rng(1).permutation(300))
    assert examples_of({"a": shuffled}) == examples_of({"a": table})
    tables = {name: table.slice(start, 30) for start, name in zip(range(0, 300, 30), "abcdefghij", strict=True)}
    assert examples_of(dict(reversed(tables.items()))) == examples_of(tables)


def test_examples_come_from_few_shards_and_are_bounded():
    examples = examples_of({f"s{i}": many_scores(20) for i in range(30)})
    assert len({example.shard for example in examples}) <= 8
    assert len(examples) <= 4 * 2 * NUM_TEXTS


def test_unreadable_example_image_is_replaced():
    encoded = encoded_image(size=(600, 300))
    table = many_scores(200)
    examples = examples_of({"a": table})
    broken = {example.sample_id for example in examples[:2]}
    samples = [
        Sample(name, encoded[: 90 if name in broken else None], ("text",), name)
        for name in table["sample_id"].to_pylist()
    ]
    shown = add_thumbnails(examples, [Shard("a", lambda: iter(samples)), Shard("b", lambda: 1 / 0)])
    assert broken.isdisjoint(example.sample_id for example, _ in shown)
    first = [example for example, _ in shown if (example.is_kept, example.place) == (True, "near")]
    assert first == examples[2 : 2 + NUM_TEXTS]


def test_kept_shares_agree_with_the_comparison_at_every_edge():
    scores = np.random.default_rng(0).integers(0, 101, 500).astype(np.float32) / np.float32(100)
    statistics = ScoreStatistics(0.0, 1.0)
    statistics.add(scores)
    expected = [(scores >= np.float32(edge)).mean() for edge in statistics.edges[:-1]]
    np.testing.assert_allclose(statistics.kept_shares()[:-1], expected, rtol=0, atol=1e-12)


def test_a_text_without_a_score_is_not_in_the_histogram():
    statistics = ScoreStatistics(0.0, 1.0)
    statistics.add(np.array([0.5, np.nan], dtype=np.float32))
    assert (statistics.counts.sum(), statistics.mean()) == (1, 0.5)


def test_rare_words_are_dropped_to_bound_memory(monkeypatch):
    monkeypatch.setattr(capfilt_statistics, "MAX_DISTINCT_WORDS", 5)
    statistics = TextStatistics()
    for i in range(40):
        statistics.add([f"dog rare{i}"])
    words = statistics.to_dict()
    assert words["num_distinct_words"] <= 10
    assert (words["num_words"], statistics.words["dog"]) == (80, 40)
    assert not words["num_distinct_words_is_exact"]


def test_changed_words_are_ranked_by_their_share_of_all_words():
    before, after = TextStatistics(), TextStatistics()
    before.add(["a a img jpg"])
    after.add(["a a a dog"])
    changes = word_changes(before, after, num_words=2)
    assert [word["word"] for word in changes["added"]] == ["a", "dog"]
    assert {word["word"]: word["after"] for word in changes["dropped"]} == {"img": 0, "jpg": 0}
