# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf bootstrap`: its settings, its stages, its table, and the whole loop at small scale."""

import json
import subprocess
import sys
from dataclasses import fields

import pytest
import transformers
import yaml

from blip_hf.bootstrap.config import FileData, LoopSettings
from blip_hf.bootstrap.loop import SeedResult
from blip_hf.bootstrap.scene_sections import SCENE_SECTIONS
from blip_hf.bootstrap.stages import run_stage, source_digests
from blip_hf.bootstrap.table import render, summarise
from blip_hf.cli import bootstrap, main
from blip_hf.cli.parser import run
from blip_hf.training import BlipTrainer
from tests.support.paths import EXAMPLES


RECIPES = sorted((EXAMPLES / "recipes").glob("bootstrap_*.yaml"))
TINY = {
    "data": {"num_web": 24, "num_human": 16, "num_eval": 8, "num_check": 8, "image_size": 32},
    "device": "cpu",
    "model": {"hidden_size": 32, "num_vision_layers": 1, "num_text_layers": 1},
    "pretrain": {
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "warmup_steps": 0,
        "queue_size": 16,
        "save_strategy": "no",
    },
    "captioner": {"max_steps": 4, "per_device_train_batch_size": 8, "warmup_steps": 0, "save_steps": 2},
    "filter": {
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "warmup_steps": 0,
        "queue_size": 16,
        "save_strategy": "no",
    },
    "capfilt": {"max_length": 10},
    "evaluation": {"k_test": 4, "max_length": 10},
}


def run_loop(folder, capfd, *, status=0, **changes):
    """The final table, and the stages that ran."""
    config = folder / "loop.yaml"
    config.write_text(yaml.safe_dump(TINY | changes))
    assert main(["bootstrap", "--config", str(config), "--output_dir", str(folder / "out")]) == status
    out, err = capfd.readouterr()
    lines = [line.partition("] ")[2] for line in err.splitlines() if line.startswith("[seed")]
    return out, [line.partition(":")[0] for line in lines if line.endswith(("starts", "resumes"))]


STAGES = [
    "sets",
    "start",
    "pairs-noisy",
    "pretrain-noisy",
    "captioner",
    "filter",
    "evaluate-captioner",
    "evaluate-filter",
    "capfilt",
    "measure-capfilt",
    "evaluate-noisy",
    "pairs-bootstrapped",
    "pretrain-bootstrapped",
    "evaluate-bootstrapped",
    "check",
    "measure-check",
]


def break_at_step(number, monkeypatch):
    """Records training steps and interrupts the given one."""
    step, calls = BlipTrainer.training_step, []

    def breaking_step(self, *args, **kwargs):
        calls.append(self)
        if len(calls) == number:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(BlipTrainer, "training_step", breaking_step)
    return calls


def test_loop_resumes_and_repeats_only_changed_stages(tmp_path, capfd, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    table, done = run_loop(whole, capfd)
    assert done == STAGES
    assert "text to image, R@1" in table
    results = json.loads((whole / "out" / "results.json").read_text())
    assert set(results["models"]) == {"noisy", "bootstrapped"}
    assert results["capfilt"]["web_texts"]["mean"] == 24
    for part, kind in (
        ("captioner", transformers.BlipForConditionalGeneration),
        ("filter", transformers.BlipForImageTextRetrieval),
    ):
        _, info = kind.from_pretrained(whole / "out" / "seed-0" / part, output_loading_info=True)
        assert not info["missing_keys"]

    # Interrupted in the captioner's third step; the second was saved.
    calls = break_at_step(5, monkeypatch)
    run_loop(cut, capfd, status=130)
    assert (cut / "out" / "seed-0" / "captioner.part" / "checkpoint-2").is_dir()
    capfd.readouterr()
    _, done = run_loop(cut, capfd)
    assert done == STAGES[4:]
    assert len(calls) == 5 + 2 + 1 + 2  # two steps of the captioner, one of the filter, two of the second model
    paths = [folder / "out" / "seed-0" / "captioner" / "model.safetensors" for folder in (cut, whole)]
    assert paths[0].read_bytes() == paths[1].read_bytes()

    assert run_loop(whole, capfd) == (table, [])
    _, done = run_loop(whole, capfd, filter={**TINY["filter"], "learning_rate": 1e-4})
    unchanged = ("evaluate-captioner", "evaluate-noisy")
    assert done == ["filter", *(stage for stage in STAGES[6:] if stage not in unchanged)]

    # Another rule or evaluation repeats no earlier training, and the batch size does not repeat CapFilt.
    judged = {"evaluation": {**TINY["evaluation"], "batch_size": 3}, "rule": {"threshold": 0.3}}
    _, done = run_loop(
        whole,
        capfd,
        filter={**TINY["filter"], "learning_rate": 1e-4},
        capfilt={**TINY["capfilt"], "num_workers": 0, "batch_size": 3},
        **judged,
    )
    assert done == [stage for stage in STAGES[6:] if stage not in ("capfilt", "check")]


def test_digest_depends_on_the_content_of_files_and_folders(tmp_path):
    folder = tmp_path / "web"
    (folder / "train").mkdir(parents=True)
    (folder / "a.png").write_text("an image")
    (folder / "metadata.jsonl").write_text("one")
    (folder / "train" / "data-00000.arrow").write_text("two")
    before = source_digests(folder)
    assert list(before) == ["metadata.jsonl", "train/data-00000.arrow"]
    (folder / "metadata.jsonl").write_text("another")
    after = source_digests(folder)
    assert {name for name in before if before[name] != after[name]} == {"metadata.jsonl"}
    assert list(source_digests(folder / "metadata.jsonl").values()) == [after["metadata.jsonl"]]
    assert source_digests("owner/name") == {}


# Settings


def test_scene_sections_extend_the_settings_of_a_small_model():
    settings = LoopSettings.from_mapping({"pretrain": {"max_steps": 7}, "variants": ["bootstrapped"]})
    assert settings.pretrain == {**SCENE_SECTIONS["pretrain"], "max_steps": 7}
    assert settings.variants == ("noisy", "bootstrapped")
    settings.check()


def test_file_sections_have_no_preset_settings():
    settings = LoopSettings.from_mapping({"data": {"web": "a.json", "human": "b.json", "eval": "c.json"}})
    assert settings.pretrain == {}
    assert settings.data == FileData("a.json", "b.json", "c.json")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid(recipe):
    settings = LoopSettings.from_mapping(yaml.safe_load(recipe.read_text()))
    settings.check()
    assert {"noisy", "filtered", "captioned", "bootstrapped"} <= set(settings.variants)  # the paper, table 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pretraining": {}}, "name pretraining, expected some of"),
        ({"pretrain": {"steps": 4}}, "pretrain names steps"),
        ({"pretrain": {"learning_rate": "1e-3"}}, "learning_rate is the text"),
        ({"captioner": {"output_dir": "here"}}, "captioner names output_dir, which the loop sets"),
        ({"rule": {"sources": ["web"]}}, "rule names sources or capfilt names seed"),
        ({"rule": {"by": "sum"}}, "expected 'itm', 'itc' or 'posterior'"),
        ({"capfilt": {"top": 0.9}}, "capfilt names top"),
        ({"variants": ["clean"]}, "variant 'clean' is unknown"),
        ({"seeds": []}, "seeds="),
        ({"data": {"web": "a.json"}}, "data does not fit FileData"),
        ({"data": {"num_wep": 5}}, "data names num_wep"),
        ({"model": {"width": 5}}, "model names width"),
        ({"seeds": 3}, r"seeds=3, expected a list"),
        ({"seeds": ["a"]}, r"seeds=\('a',\), expected a list"),
        ({"capfilt": {"max_length": 4}}, "capfilt: max_length=4 leaves no room .* Pass 5 or more"),
        ({"evaluation": {"max_length": 4}}, "evaluation: max_length=4 leaves no room .* Pass 5 or more"),
        ({"captioner": {"prompt": 3}}, "prompt=3 is not a string. Pass '' for no prompt"),
        ({"evaluation": {"num_beams": 0}}, "evaluation: num_beams=0 is too small"),
        ({"evaluation": {"batch_size": 0}}, "evaluation: batch_size=0 is too small"),
        ({"evaluation": {"batch_size": "all"}}, "evaluation does not fit"),
        ({"evaluation": 3}, "evaluation is 3, expected names with values"),
        ({"data": 3}, "data is 3, expected names with values"),
        ({"rule": 3}, "rule is 3, expected names with values"),
        ({"device": "gpu"}, "device='gpu' is not on this machine; pass 'cpu'"),
    ],
)
def test_invalid_settings_raise_before_the_first_stage(values, message):
    with pytest.raises(ValueError, match=message):
        LoopSettings.from_mapping(values).check()


def test_several_processes_raise(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="runs in one process"):
        run(bootstrap.COMMAND, [])


def test_folder_locked_by_another_process_raises(tmp_path):
    hold = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); sys.stdin.read()"
    lock = tmp_path / bootstrap.LOCKS / "bootstrap.lock"
    with subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdin=subprocess.PIPE, stdout=-1) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="Another blip-hf bootstrap is running in"):
            run(bootstrap.COMMAND, ["--output_dir", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == [bootstrap.LOCKS]


# Stages


def counting_action(calls, name):
    def action(work):
        calls.append(name)
        (work / "output").write_text(name)
        return {"number": len(calls)}

    return action


def test_stage_reruns_only_when_settings_or_inputs_change(tmp_path):
    calls = []

    def run_both(first, second):
        one = run_stage(tmp_path / "one", {"value": first}, [], counting_action(calls, "one"), print)
        return run_stage(tmp_path / "two", {"value": second}, [one], counting_action(calls, "two"), print)

    first = run_both(1, 1)
    assert run_both(1, 1) == first
    assert calls == ["one", "two"]
    run_both(1, 2)
    assert calls == ["one", "two", "two"]
    run_both(2, 2)
    assert calls[3:] == ["one", "two"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_interrupted_stage_keeps_its_files_unless_its_settings_change(tmp_path):
    found = []

    def action(work):
        found.append((work / "half").exists())
        (work / "half").write_text("done")
        if len(found) in (1, 2):
            raise KeyboardInterrupt
        return {}

    for value in (1, 1, 2):
        if len(found) < 2:
            with pytest.raises(KeyboardInterrupt):
                run_stage(tmp_path / "stage", {"value": value}, [], action, print)
        else:
            run_stage(tmp_path / "stage", {"value": value}, [], action, print)
    assert found == [False, True, False]


def test_completed_stage_is_not_rerun_if_only_its_rename_was_interrupted(tmp_path):
    calls = []
    stage = run_stage(tmp_path / "stage", {}, [], counting_action(calls, "stage"), print)
    stage.folder.rename(tmp_path / "stage.part")
    again = run_stage(tmp_path / "stage", {}, [], counting_action(calls, "stage"), print)
    assert (again, calls) == (stage, ["stage"])
    assert stage.folder.is_dir()


# Metrics


def result_of(seed, recall):
    metrics = {"train_pairs": 10 * seed, "text_to_image_r@1": recall}
    return SeedResult(
        seed,
        {"noisy": metrics, "bootstrapped": metrics},
        {"caption_exact_match": recall},
        {},
        {"web_kept": recall},
        {},
        1.0,
    )


def split_row(line):
    return line.strip("|").split("|")


def test_table_has_mean_and_standard_deviation_over_seeds():
    assert summarise([{"a": 0.2, "b": None}, {"a": 0.4, "b": 1.0}]) == {
        "a": {"mean": pytest.approx(0.3), "spread": pytest.approx(0.02**0.5)}
    }
    table = render(LoopSettings(seeds=(1, 2)), [result_of(1, 0.2), result_of(2, 0.4)])
    lines = [line for line in table.splitlines() if line.startswith("|")]
    rows = {name: cells for name, *cells in ([cell.strip() for cell in split_row(line)] for line in lines)}
    assert rows[""] == ["noisy", "bootstrapped", "captioner", "filter"]
    assert rows["text to image, R@1"] == ["30.0% ± 14.1", "30.0% ± 14.1", "", ""]
    assert rows["caption, exact match"] == ["", "", "30.0% ± 14.1", ""]
    single = render(LoopSettings(), [result_of(0, 0.2)])
    assert "±" not in single
    assert "20.0%" in single


def test_every_field_of_the_settings_is_in_the_results():
    assert set(LoopSettings().to_dict()) == {option.name for option in fields(LoopSettings)}
    json.dumps(LoopSettings.from_mapping({}).to_dict())
