# SPDX-License-Identifier: BSD-3-Clause
"""The sets of `blip-hf bootstrap`: images, ground truth of web captions, and training pairs of variants."""

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip_hf.bootstrap.config import FileData, SceneData
from blip_hf.bootstrap.measure import measure_capfilt
from blip_hf.bootstrap.sets import (
    CHECK,
    EVAL,
    HUMAN,
    WEB,
    Truth,
    read_truth,
    read_web,
    rule_of_run,
    save_pairs,
    write_file_sets,
    write_scene_sets,
    write_variant,
    write_web,
)
from blip_hf.capfilt.filters import Rule
from blip_hf.capfilt.scores import RunFolder, write_scores
from tests.support.files import write_json
from tests.support.images import write_image
from tests.support.scores import score_row, table_of


SCENES = SceneData(num_web=30, num_human=20, num_eval=10, num_check=12, image_size=32)


@pytest.fixture(scope="module")
def scene_sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    write_scene_sets(SCENES, 3, folder)
    return folder


def test_no_scene_is_in_two_sets(scene_sets):
    web, check = (read_web(scene_sets / name)["image_id"].to_pylist() for name in (WEB, CHECK))
    evaluation = datasets.load_from_disk(scene_sets / EVAL)
    assert web == list(range(30))
    assert check == list(range(50, 62))
    assert min(evaluation["image_id"]) >= 62
    assert len(set(evaluation["caption"])) == 10


def test_human_scenes_of_one_caption_share_an_id(tmp_path):
    write_scene_sets(SceneData(num_web=1, num_human=300, num_eval=2, num_check=1, image_size=32), 0, tmp_path)
    human = datasets.load_from_disk(tmp_path / HUMAN)
    captions, ids = human["caption"][:], human["image_id"][:]
    assert len(set(ids)) == len(set(captions)) == len(set(zip(captions, ids, strict=True))) < 300


def test_ground_truth_marks_swapped_captions(scene_sets):
    truth, web = read_truth(scene_sets), read_web(scene_sets / WEB)
    labels = [
        (
            truth.is_right("web", str(pair["image_id"]), pair["caption"]),
            truth.captions[str(pair["image_id"])] == pair["caption"],
        )
        for pair in web.to_pylist()
    ]
    assert set(labels) == {(True, True), (False, False)}
    assert truth.captions.keys() == set(map(str, (*range(30), *range(50, 62))))


def test_human_photos_are_taken_from_the_web_and_labels_follow(tmp_path):
    for name in "abcdef":
        write_image(tmp_path / f"{name}.png")
    human = [{"image": f"{name}.png", "caption": f"{name} {i}"} for name in "abcdef" for i in range(2)]
    web = [{"image": f"{name}.png", "caption": f"web {name}"} for name in "abcdef"]
    for name, content in (("human", human), ("web", web), ("labels", [1, 0, 1, 0, 1, 0])):
        write_json(tmp_path / f"{name}.json", content)
    paths = {name: str(tmp_path / f"{name}.json") for name in ("web", "human")}
    data = FileData(**paths, eval=paths["human"], human_share=0.5, web_labels=str(tmp_path / "labels.json"))
    metrics = write_file_sets(data, 0, tmp_path / "sets")
    assert (metrics["num_web"], metrics["num_human"], metrics["num_eval"]) == (3, 6, 12)
    kept_web, kept_human = read_web(tmp_path / "sets" / WEB), datasets.load_from_disk(tmp_path / "sets" / HUMAN)
    web_names = {caption[-1] for caption in kept_web["caption"].to_pylist()}
    assert web_names.isdisjoint({caption[0] for caption in kept_human["caption"]})
    assert set(kept_web["image_id"].to_pylist()).isdisjoint(kept_human["image_id"])
    truth = read_truth(tmp_path / "sets")
    labels = {
        pair["caption"]: truth.is_right("web", str(pair["image_id"]), pair["caption"]) for pair in kept_web.to_pylist()
    }
    assert labels == {f"web {name}": "abcdef".index(name) % 2 == 0 for name in web_names}


def test_image_is_identified_by_its_resolved_path(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for name in "abcd":
        write_image(tmp_path / "photos" / f"{name}.png")
    lists = {
        "human": [{"image": f"photos/{name}.png", "caption": name} for name in "abcd"],
        "web": [
            {"image": f"{way}/{name}.png", "caption": name} for name in "abcd" for way in ("photos/../photos", "link")
        ],
    }
    for name, content in lists.items():
        write_json(tmp_path / f"{name}.json", content)
    web, human = (str(tmp_path / f"{name}.json") for name in ("web", "human"))
    metrics = write_file_sets(FileData(web, human, human, human_share=0.5), 0, tmp_path / "sets")
    assert (metrics["num_web"], metrics["num_human"]) == (4, 2)
    left = read_web(tmp_path / "sets" / WEB)
    assert set(left["caption"].to_pylist()).isdisjoint(datasets.load_from_disk(tmp_path / "sets" / HUMAN)["caption"])
    assert len(set(left["image_id"].to_pylist())) == 2


def test_each_text_of_an_image_has_its_own_label(tmp_path):
    write_image(tmp_path / "a.png")
    web = [{"image": "a.png", "caption": caption} for caption in ("right", "wrong ", "right too")]
    for name, content in (("web", web), ("labels", [1, 0, 1])):
        write_json(tmp_path / f"{name}.json", content)
    path, sets = str(tmp_path / "web.json"), tmp_path / "sets"
    write_file_sets(FileData(path, path, path, web_labels=str(tmp_path / "labels.json")), 0, sets)
    noisy = write_variant("noisy", sets, None, tmp_path / "pairs", rule=Rule(), with_human=False, is_drawn=False)
    assert noisy["share_right"] == pytest.approx(2 / 3)
    # CapFilt merges the three into one sample with the id of the first.
    rows = [
        score_row("web-00000/0", "0", text, "web", itm, image="a.png", text_index=number)
        for number, (text, itm) in enumerate([("right", 0.9), ("wrong", 0.1), ("right too", 0.8)])
    ]
    write_scores(table_of(rows), RunFolder(tmp_path / "run").scores("web-00000"))
    metrics = measure_capfilt(tmp_path / "run", read_truth(sets), Rule())
    assert (metrics["web_right"], metrics["web_precision"], metrics["web_recall"]) == (pytest.approx(2 / 3), 1.0, 1.0)
    assert metrics["web_noise_recall"] == 1.0


@pytest.fixture
def scored(tmp_path):
    """Three web images with a synthetic text each, and one human pair. The first two web texts are right."""
    sets, run = tmp_path / "sets", tmp_path / "run"
    web = [
        {"image": "a.png", "caption": caption, "image_id": number, "id": str(number)}
        for number, caption in enumerate(["a ring", "a star", "a cross"])
    ]
    write_web(web, sets / WEB, is_drawn=False)
    save_pairs([{"image": "b.png", "caption": "a ring", "image_id": 9}], sets / HUMAN, is_drawn=False)
    truth = [("0", "a ring", True, "a ring"), ("1", "a star", True, "a star"), ("2", "a cross", False, "a heart")]
    columns = zip(("image_id", "text", "is_right", "caption"), zip(*truth, strict=True), strict=True)
    pq.write_table(pa.table({name: list(values) for name, values in columns}), sets / "truth.parquet")
    texts = [
        ("0", "web", "a ring", 0.9),
        ("0", "synthetic", "a ring", 0.9),
        ("1", "web", "a star", 0.4),
        ("1", "synthetic", "a heart", 0.7),
        ("2", "web", "a cross", 0.1),
        ("2", "synthetic", "a heart", 0.8),
    ]
    rows = [score_row(f"web-00000/{id_}", id_, text, source, itm) for id_, source, text, itm in texts]
    write_scores(table_of(rows), RunFolder(run).scores("web-00000"))
    return sets, run


@pytest.mark.parametrize(
    ("variant", "captions", "share_right"),
    [
        ("noisy", ["a ring", "a star", "a cross"], 2 / 3),
        # The union has no duplicates, and the wrong star is below the threshold.
        ("bootstrapped", ["a ring", "a heart", "a heart"], 2 / 3),
        ("repeated", ["a ring", "a star", "a cross"], 2 / 3),
        ("filtered", ["a ring"], 1.0),
        ("captioned", ["a ring", "a star", "a heart", "a cross", "a heart"], 3 / 5),
    ],
)
def test_variants_train_on_their_pairs(scored, tmp_path, variant, captions, share_right):
    metrics = write_variant(variant, *scored, tmp_path / "pairs", rule=Rule(), with_human=True, is_drawn=True)
    pairs = datasets.load_from_disk(tmp_path / "pairs")
    assert pairs["caption"][:] == [*captions, "a ring"]
    assert metrics["train_pairs"] == len(pairs)
    assert metrics["share_right"] == pytest.approx(share_right)
    # The human ring and the web ring are not negatives of each other.
    assert len(set(zip(pairs["caption"], pairs["image_id"], strict=True))) == len(set(pairs["image_id"]))


def test_control_repeats_web_pairs_up_to_the_number_of_bootstrapped_pairs(scored, tmp_path):
    lenient = Rule(threshold=0.0)
    sizes = {
        variant: write_variant(variant, *scored, tmp_path / variant, rule=lenient, with_human=False, is_drawn=False)
        for variant in ("bootstrapped", "repeated")
    }
    assert sizes["repeated"]["train_pairs"] == sizes["bootstrapped"]["train_pairs"] == 5
    repeated = datasets.load_from_disk(tmp_path / "repeated")
    assert repeated["caption"][:] == ["a ring", "a star", "a cross", "a ring", "a star"]
    assert repeated["image_id"][:] == [0, 1, 2, 0, 1]


def test_a_filter_that_keeps_nothing_leaves_the_human_pairs(scored, tmp_path):
    strict = {"rule": Rule(threshold=2.0), "is_drawn": True}
    metrics = write_variant("bootstrapped", *scored, tmp_path / "pairs", with_human=True, **strict)
    assert metrics == {"train_pairs": 1, "train_web": 0, "train_synthetic": 0}
    with pytest.raises(ValueError, match="keeps no text for 'bootstrapped'"):
        write_variant("bootstrapped", *scored, tmp_path / "none", with_human=False, **strict)


def test_filter_metrics_match_values_computed_by_hand(scored):
    sets, run = scored
    metrics = measure_capfilt(run, read_truth(sets), Rule())
    # Only the ring of the web texts is kept; the star is right too, and no wrong text scores above either.
    assert (metrics["web_kept"], metrics["web_precision"], metrics["web_recall"]) == (pytest.approx(1 / 3), 1.0, 0.5)
    assert (metrics["web_noise_recall"], metrics["web_roc_auc"]) == (1.0, 1.0)
    # All synthetic texts are kept; "heart" of the second image is wrong.
    assert (metrics["synthetic_precision"], metrics["synthetic_roc_auc"]) == (pytest.approx(2 / 3), 1.0)
    assert "web_precision" not in measure_capfilt(run, Truth(), Rule())


@pytest.mark.parametrize(("temperature", "expected"), [(0.2, 0.2), (None, 0.07)])
def test_a_rule_by_the_posterior_takes_the_temperature_of_the_run(tmp_path, temperature, expected):
    own = {} if temperature is None else {"itm_temperature": temperature}  # a run of an earlier version has none
    write_json(tmp_path / "run.json", {"models": {"filter": {"name": "filter", **own}}})
    assert rule_of_run(tmp_path, Rule(by="posterior", threshold=0)).itm_temperature == expected
    assert rule_of_run(tmp_path, Rule()) == Rule()
