# SPDX-License-Identifier: BSD-3-Clause
"""Records that are skipped while a set is loaded are in the final JSON of each command, and under its bound."""

import json

import pytest

from blip_hf.cli import main
from tests.support.files import write_json
from tests.support.images import write_images


NUM_USABLE = 12
COLORS = ("red", "lime", "blue")
TRAINING = ["--max_steps", "1", "--per_device_train_batch_size", "2", "--use_cpu", "--report_to", "none"]
TRAINING += ["--disable_tqdm", "True", "--save_strategy", "no", "--overwrite"]
SKIPPED = {"bad_record": 1, "outside_folder": 1, "unreadable_image": 1}
QUICK = {"caption": ["--metrics", "bleu"], "retrieval": ["--queue_size", "8"], "pretrain": ["--queue_size", "8"]}


def record_of(task, image):
    if task == "nlvr2":
        name = f"dev-{image}-0"
        return {"images": [image, "red.png"], "sentence": f"{name} is red", "label": "True"}
    if task == "vqa":
        return {"image": image, "question": "what color is it", "answer": "red"}
    return {"image": image, "caption": f"the square of {image.split('.')[0]}"}


@pytest.fixture
def write_list(tmp_path):
    """Writes a list with usable records, and one of each kind of bad record."""
    write_images(tmp_path, *COLORS)

    def write(task, name, num_usable=NUM_USABLE):
        usable = [record_of(task, f"{COLORS[i % 3]}.png") for i in range(num_usable)]
        bad = [{"image": 5}, record_of(task, "../a.png"), record_of(task, "lost.png")]
        return write_json(tmp_path / name, usable + bad)

    return write


def run(capsys, *argv):
    assert main([*map(str, argv)]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("task", ["caption", "retrieval", "vqa", "nlvr2"])
def test_fine_tuning_and_evaluation_count_them(task, pretrained, write_list, tmp_path, capsys):
    sets = ["--data", write_list(task, "train.json", 40), "--eval_data", write_list(task, "eval.json", 6)]
    output = tmp_path / "output"
    trained = run(
        capsys, "finetune", task, "--model", pretrained, *sets, *TRAINING, *QUICK.get(task, []), "--output_dir", output
    )
    # The missing image may be in no batch of the one step.
    reasons = trained["num_skipped_by_reason"]
    assert (reasons["bad_record"], reasons["outside_folder"]) == (1, 1)
    assert trained["num_skipped"] == sum(reasons.values())
    assert (trained["eval_num_skipped"], trained["eval_num_skipped_by_reason"]) == (3, SKIPPED)
    options = ["--device", "cpu", "--no_progress", *(QUICK["caption"] if task == "caption" else [])]
    metrics = run(capsys, "evaluate", task, "--model", output, "--data", sets[3], *options)
    assert (metrics["num_skipped"], metrics["num_skipped_by_reason"]) == (3, SKIPPED)


def test_pre_training_counts_them(pretrained, write_list, tmp_path, capsys):
    sets = ["--data", write_list("caption", "train.json", 40), "--eval_data", write_list("caption", "eval.json", 6)]
    metrics = run(
        capsys, "pretrain", "--model", pretrained, *sets, *TRAINING, *QUICK["pretrain"], "--output_dir", tmp_path / "o"
    )
    assert metrics["num_skipped_by_reason"].items() >= {"bad_record": 1, "outside_folder": 1}.items()
    assert (metrics["eval_num_skipped"], metrics["eval_num_skipped_by_reason"]) == (3, SKIPPED)


@pytest.mark.parametrize("task", ["caption", "vqa", "nlvr2"])
def test_the_bound_stops_before_training(task, pretrained, write_list, tmp_path, capsys):
    argv = ["finetune", task, "--model", pretrained, "--data", write_list(task, "train.json", 6), *TRAINING]
    assert main([*map(str, argv), "--output_dir", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert "Skipped 2 of 9 records: 1 bad_record" in error
    assert "max_bad_share=0.1 is accepted" in error
