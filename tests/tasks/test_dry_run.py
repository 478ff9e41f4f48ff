# SPDX-License-Identifier: BSD-3-Clause
"""`--dry_run`: counts, first records, steps and memory of a training that does not start."""

import json

import pytest

from blip_hf.cli import main
from blip_hf.data.pairs import PairDataset
from blip_hf.training.memory import estimate_memory
from tests.support.files import write_json
from tests.support.images import write_image
from tests.support.trainers import make_captioning_trainer, make_records


TINY = [
    "--use_cpu",
    "--report_to",
    "none",
    "--per_device_train_batch_size",
    "4",
    "--num_train_epochs",
    "3",
    "--dry_run",
]


def dry_run(capsys, *argv):
    assert main([*map(str, argv), *TINY]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("task", ["caption", "retrieval", "vqa", "nlvr2"])
def test_a_dry_run_describes_each_fine_tuning_and_writes_nothing(task, pretrained, tmp_path, capsys):
    argv = ["finetune", task, "--model", pretrained, "--data", "scenes:40", "--eval_data", "scenes:10"]
    argv += ["--queue_size", "8"] if task == "retrieval" else ["--metrics", "bleu"] if task == "caption" else []
    report = dry_run(capsys, *argv, "--output_dir", tmp_path / "out")
    train, evaluation = report["train"], report["eval"]
    per_image = 1 if task != "vqa" else train["num_records"] / 40
    assert (train["num_records"], evaluation["num_records"] > 0) == (40 * per_image, True)
    assert len(train["first_records"]) == 3
    assert "image of 32x32 pixels" in json.dumps(train["first_records"][0])
    assert train["num_unusable"] == 0
    steps = train["num_records"] // 4
    assert (report["num_steps"], report["steps_per_epoch"], report["records_per_step"]) == (3 * steps, steps, 4)
    assert report["num_trained_parameters"] <= report["num_parameters"]
    assert set(report["memory_gib"]) == {"weights", "gradients", "optimizer", "activations", "total"}
    assert not list((tmp_path / "out").glob("*"))


def test_a_dry_run_describes_pre_training(tmp_path, capsys):
    sizes = ["--image_size", 32, "--vision_width", 64, "--vision_layers", 2, "--text_width", 64, "--text_layers", 2]
    argv = [
        "pretrain",
        "--data",
        "scenes:16",
        "--in_memory",
        *sizes,
        "--queue_size",
        8,
        "--output_dir",
        tmp_path / "out",
    ]
    report = dry_run(capsys, *argv)
    assert (report["num_steps"], report["eval"]) == (12, None)
    assert not list((tmp_path / "out").glob("*"))


def test_unusable_records_and_captions_are_shown(pretrained, tmp_path, capsys):
    write_image(tmp_path / "a.png")
    records = [
        {"image": name, "caption": "a red square", "image_id": i}
        for i, name in enumerate(["a.png"] * 5 + ["lost.png"])
    ]
    argv = ["finetune", "caption", "--model", pretrained, "--data", write_json(tmp_path / "pairs.json", records)]
    report = dry_run(capsys, *argv, "--output_dir", tmp_path / "out")
    assert (report["train"]["num_checked"], report["train"]["num_unusable"]) == (6, 1)
    first = report["train"]["first_records"][0]
    assert (first["image"], first["caption"]) == (str(tmp_path / "a.png"), "a red square")


def test_a_dry_run_fails_as_the_run_would(pretrained, tmp_path, capsys):
    argv = [
        "finetune",
        "caption",
        "--model",
        pretrained,
        "--data",
        "scenes:3",
        "--output_dir",
        tmp_path / "out",
        *TINY,
    ]
    assert main(list(map(str, argv))) == 2
    assert "The training set has 3 records and a step takes 4" in capsys.readouterr().err


# peft 0.21 reads the older name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_need_less_memory(pretrained, tmp_path, capsys):
    pytest.importorskip("peft")
    argv = ["finetune", "vqa", "--model", pretrained, "--data", "scenes:8", "--output_dir", tmp_path / "out"]
    whole, lora = dry_run(capsys, *argv), dry_run(capsys, *argv, "--lora", "--learning_rate", "1e-3")
    assert lora["num_trained_parameters"] < whole["num_trained_parameters"] / 2


def test_the_estimate_counts_weights_states_and_activations(tmp_path):
    trainer = make_captioning_trainer(tmp_path, PairDataset(make_records(4)))
    batch = trainer.data_collator(make_records(2))
    number = sum(parameter.numel() for parameter in trainer.model.parameters())
    small, large = (estimate_memory(trainer, batch, size, unit=1) for size in (2, 8))
    assert small["gradients"] == 4 * number
    assert small["optimizer"] == 8 * number
    assert small["weights"] >= 4 * number
    assert large["activations"] == pytest.approx(4 * small["activations"])
    assert small["total"] == pytest.approx(sum(value for name, value in small.items() if name != "total"))
    # Each image token takes part in at least its input of each layer.
    vision = trainer.model.config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2 + 1
    assert small["activations"] > 2 * tokens * vision.hidden_size * vision.num_hidden_layers * 4
    trainer.model.requires_grad_(False)
    assert estimate_memory(trainer, batch, 2, unit=1)["gradients"] == 0
