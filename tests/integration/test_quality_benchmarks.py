# SPDX-License-Identifier: BSD-3-Clause
"""Studies of what is trained run, and their tables have the values of their runs."""

import json
import random

import pytest

from benchmarks import filter_quality, momentum, photos, posterior, recipes
from blip_hf import BlipForImageTextRetrieval
from tests.support.tiny_models import tiny_model_for
from tests.support.vocabularies import make_processor


@pytest.fixture(scope="module")
def retriever_folder(tmp_path_factory):
    folder, processor = tmp_path_factory.mktemp("retriever"), make_processor()
    for part in (tiny_model_for(BlipForImageTextRetrieval, processor), processor):
        part.save_pretrained(folder)
    return folder


def test_the_table_of_scores_has_the_means_of_the_sets(retriever_folder, tmp_path):
    argv = ["--model", str(retriever_folder), "--num_sets", "2", "--num_scenes", "6", "--k", "4"]
    report = posterior.main(argv, tmp_path)
    assert json.loads((tmp_path / "posterior_scenes.json").read_text())["sets"] == report["sets"]
    lines = (tmp_path / "posterior_scenes.md").read_text().splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == list(report["sets"][0]["scores"])
    mean = sum(own["scores"]["cosine"]["image_to_text_r@1"] for own in report["sets"]) / 2
    assert lines[2].split(" | ")[1] == f"{mean:.1%}"


def test_filters_are_compared_on_swapped_captions_and_near_misses(retriever_folder, tmp_path):
    report = filter_quality.main(["--model", str(retriever_folder), "--num_pairs", "12"], tmp_path)
    assert report["num_right"] + report["num_swapped"] == 12
    assert 0 < report["num_near_misses"] <= report["num_right"]
    assert all(0 <= value <= 1 for values in report["roc_auc"].values() for value in values.values())
    assert len((tmp_path / "filter_scenes.md").read_text().splitlines()) == 2 + len(report["roc_auc"])


def test_a_near_miss_differs_in_one_word_of_the_same_group():
    caption = "a small red ring left of a blue star"
    for seed in range(20):
        miss = filter_quality.near_miss(caption, random.Random(seed))
        ((old, new),) = [pair for pair in zip(caption.split(), miss.split(), strict=True) if pair[0] != pair[1]]
        assert any({old, new} <= set(group) for group in filter_quality.WORD_GROUPS)
    assert filter_quality.near_miss("a photo", random.Random(0)) is None


def test_a_learning_curve_has_a_point_for_each_evaluation(tmp_path):
    argv = ["--max_steps", "2", "--seeds", "0", "--num_scenes", "64", "--num_held_out", "8"]
    report = momentum.main([*argv, "--ways", momentum.BATCH_ALONE], tmp_path)
    (run,) = report["runs"]
    assert (run["way"], run["seed"], [step for step, _ in run["curve"]]) == (momentum.BATCH_ALONE, 0, [1, 2])
    assert (tmp_path / "momentum_scenes.png").stat().st_size > 0


def test_the_table_of_learning_curves_has_the_means_of_the_seeds():
    runs = [{"way": "a", "curve": [(1, 0.1), (2, value)]} for value in (0.25, 0.35)]
    assert momentum.table_lines({"runs": runs})[-1] == "| a | 10.0% | 30.0% | 25.0% to 35.0% |"


def test_recipes_differ_in_their_options_alone_and_the_chosen_one_has_none(tmp_path):
    argv = ["--max_steps", "2", "--seeds", "0", "--num_scenes", "64", "--num_held_out", "8"]
    report = recipes.main(argv, tmp_path)
    assert json.loads((tmp_path / "recipes_scenes.json").read_text())["runs"][0]["options"] == []
    assert [run["way"] for run in report["runs"]] == [recipes.CHOSEN, recipes.TUNED, recipes.PUBLISHED]
    assert len(report["runs"][0]["curve"]) == 2
    row = (tmp_path / "recipes_scenes.md").read_text().splitlines()[2]
    assert f"{report['runs'][0]['eval_r_mean']:.1%}" in row


def test_the_table_of_recipes_has_mean_and_range_of_the_seeds():
    runs = [{"way": "a"} | dict.fromkeys(recipes.COLUMNS, value) for value in (0.25, 0.75)]
    assert recipes.table_lines({"runs": runs})[-1].count("50.0% (25.0% to 75.0%)") == len(recipes.COLUMNS) - 1


def test_the_tables_of_the_run_on_photos_have_what_its_commands_wrote(tmp_path):
    runs = tmp_path / "runs"
    recalls = {f"{way}_r@{k}": k / 40 for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)}
    evaluations = [
        {"step": step, "eval_r_mean": 0.5} | {f"eval_{name}": value * step / 100 for name, value in recalls.items()}
        for step in (50, 100)
    ]
    numbers = [*photos.SAMPLES, "12"]
    for name, values in {
        "retrieval_all": {f"itc_{name}": value for name, value in recalls.items()},
        "caption_all": {"cider": 0.5},
        "caption_all_predictions": [
            {"image_id": f"images/{number}_0a.jpg", "caption": f"caption {number}"} for number in numbers
        ],
        "contrast_queue/trainer_state": {"log_history": [{"step": 10, "loss": 2.0}, *evaluations]},
    }.items():
        path = runs / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    labels = ("cosine", "paper", "posterior, T = 0.1", "posterior, T fitted on the set itself")
    scores = {
        label: {name: value / number for name, value in recalls.items()} for number, label in enumerate(labels, 1)
    }
    (tmp_path / "posterior_photos.json").write_text(json.dumps({"itm_temperature": 0.1, "sets": [{"scores": scores}]}))
    photos.main([str(runs)], tmp_path)
    retrieval = (tmp_path / "photos_retrieval.md").read_text()
    assert "| during the last contrastive stage, cosines | 2.5 / 12.5 / 25.0% |" in retrieval
    assert "| after all stages, cosines | 2.5 / 12.5 / 25.0% |" in retrieval
    assert "| after fine-tuning, best 32 re-ranked by the paper's score | 1.2 / 6.2 / 12.5% |" in retrieval
    assert "| the same, temperature fitted on `val.json` itself | 0.6 / 3.1 / 6.2% |" in retrieval
    assert (
        "| momentum and queue | 1.2 / 1.2 / 50.0% | 2.5 / 2.5 / 50.0% |" in (tmp_path / "photos_keys.md").read_text()
    )
    rows = (tmp_path / "photos_samples.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[-1] for row in rows] == [f"caption {number} |" for number in photos.SAMPLES]
    assert not (tmp_path / "photos_vqa.md").exists()


def test_a_folder_without_metrics_is_an_error_and_writes_nothing(tmp_path, capsys):
    posterior_results = tmp_path / "posterior_photos.json"
    posterior_results.write_text("{}")
    with pytest.raises(SystemExit):
        photos.main([str(tmp_path / "nope")], tmp_path)
    assert "retrieval_all.json" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [posterior_results]
