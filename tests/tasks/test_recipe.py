# SPDX-License-Identifier: BSD-3-Clause
"""What pre-training chooses for short runs, and what it leaves to the paper and to the user."""

import pytest

from blip_hf import BlipPreTrainingConfig
from blip_hf.cli import main
from blip_hf.cli.parser import parse
from blip_hf.cli.pretrain import COMMAND
from blip_hf.tasks.pretrain import PretrainOptions
from blip_hf.tasks.recipe import MIN_PAPER_STEPS, Recipe, choose_recipe, count_steps
from blip_hf.training import BlipTrainingArguments


def chosen(tmp_path, *argv, num_pairs=1000):
    options, arguments = parse(COMMAND, ["--data", "x", "--use_cpu", "--output_dir", str(tmp_path), *argv])
    recipe = choose_recipe(options, arguments, num_pairs)
    return {**recipe.options, **recipe.arguments}


@pytest.mark.parametrize(
    ("fields", "num_pairs", "expected"),
    [
        ({"max_steps": 7}, None, 7),
        ({"num_train_epochs": 2}, 10, 4),
        ({"num_train_epochs": 2, "gradient_accumulation_steps": 2}, 10, 2),
        ({"num_train_epochs": 2}, None, None),
    ],
)
def test_the_length_of_a_run_is_counted(tmp_path, fields, num_pairs, expected):
    assert count_steps(BlipTrainingArguments(str(tmp_path), use_cpu=True, **fields), 4, num_pairs) == expected


def test_a_run_of_some_hundred_steps_has_no_queue_and_says_so(tmp_path, caplog):
    found = chosen(tmp_path, "--max_steps", "100")
    assert found == {
        "queue_size": 0,
        "momentum": 0.0,
        "temperature": 0.05,
        "negative_temperature": 0.1,
        "contrastive_warmup_steps": 20,
        "learn_temperature": False,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 1.0,
        "per_device_train_batch_size": 64,
        "warmup_steps": 5,
    }
    assert "The run has 100 optimizer steps" in caplog.text
    for name, value in found.items():
        assert f"--{name} {value}" in caplog.text


def test_a_longer_run_has_the_papers_momentum_and_as_many_batches_in_the_queue(tmp_path):
    found = chosen(tmp_path, "--max_steps", "500", "--per_device_train_batch_size", "32")
    assert (found["queue_size"], found["contrastive_warmup_steps"]) == (640, 300)
    assert "momentum" not in found  # the default of the configuration
    argv = ["--max_steps", "500", "--gradient_accumulation_steps", "100"]
    assert chosen(tmp_path, *argv, num_pairs=10_000)["queue_size"] == 57_600


def test_trained_encoders_have_a_lower_rate(tmp_path):
    assert chosen(tmp_path, "--max_steps", "100", "--text", "t")["learning_rate"] == 1e-4


@pytest.mark.parametrize(("num_pairs", "batch_size"), [(1000, 64), (64, 64), (30, 30), (8, 8)])
def test_the_batch_fits_the_training_set(tmp_path, num_pairs, batch_size):
    assert chosen(tmp_path, num_pairs=num_pairs)["per_device_train_batch_size"] == batch_size


def test_a_set_that_does_not_fill_the_default_batch_is_left_to_the_error_of_the_trainer(tmp_path, caplog):
    assert chosen(tmp_path, num_pairs=7) == {}
    assert caplog.text == ""


def test_the_chosen_batch_counts_for_the_length(tmp_path):
    # 20 epochs of 30,000 pairs: 9,360 steps of 64 pairs, 75,000 of the 8 of transformers
    assert chosen(tmp_path, num_pairs=30_000)["warmup_steps"] == 468
    assert chosen(tmp_path, "--per_device_train_batch_size", "8", num_pairs=30_000) == {}


@pytest.mark.parametrize(
    "argv",
    [
        ["--max_steps", str(MIN_PAPER_STEPS)],
        ["--max_steps", "9", "--queue_size", "8"],
        ["--max_steps", "9", "--momentum", "0.9"],
    ],
)
def test_long_runs_and_runs_with_own_keys_are_left_alone(tmp_path, caplog, argv):
    assert chosen(tmp_path, *argv) == {}
    assert caplog.text == ""


def test_a_stream_of_unknown_length_is_left_alone(tmp_path):
    assert chosen(tmp_path, num_pairs=None) == {}


def test_given_values_stay(tmp_path):
    argv = ["--temperature", "0.03", "--learn_temperature", "True", "--max_grad_norm", "0", "--warmup_steps", "3000"]
    found = chosen(tmp_path, "--max_steps", "100", "--learning_rate", "3e-4", "--text", "t", *argv)
    names = ("temperature", "learn_temperature", "max_grad_norm", "warmup_steps", "learning_rate")
    assert not found.keys() & set(names)
    assert found["queue_size"] == 0


def test_a_model_that_is_trained_on_keeps_its_temperature_and_its_hard_negatives(tmp_path):
    for num_steps in ("100", "1000"):
        found = chosen(tmp_path, "--max_steps", num_steps, "--model", "m")
        assert found["contrastive_warmup_steps"] == 0
        assert not found.keys() & {"temperature", "negative_temperature"}


def test_arguments_made_in_python_are_kept(tmp_path):
    arguments = BlipTrainingArguments(str(tmp_path), use_cpu=True, max_steps=100)
    recipe = choose_recipe(PretrainOptions(data=["x"]), arguments, 1000)
    assert recipe.arguments == {}
    assert recipe.options["queue_size"] == 0
    assert Recipe().apply(PretrainOptions(data=["x"]), arguments) == PretrainOptions(data=["x"])


def test_the_command_trains_with_the_chosen_values_and_its_card_has_them(tmp_path):
    sizes = ["--image_size", "32", "--vision_width", "16", "--vision_layers", "1", "--text_width", "16"]
    sizes += ["--text_layers", "1", "--head_width", "8", "--feature_width", "8"]
    length = ["--max_steps", "5", "--per_device_train_batch_size", "4", "--use_cpu", "--save_strategy", "no"]
    argv = ["pretrain", "--data", "scenes", "--num_scenes", "8", *sizes, *length, "--output_dir", str(tmp_path)]
    assert main(argv) == 0
    config = BlipPreTrainingConfig.from_pretrained(tmp_path)
    assert (config.queue_size, config.momentum, config.contrastive_warmup_steps) == (0, 0.0, 1)
    assert (config.temperature_init_value, config.negative_temperature) == (0.05, 0.1)
    card = (tmp_path / "README.md").read_text()
    assert "| `queue_size` | 0 |" in card
    assert "| `learn_temperature` | False |" in card
    assert "| `lr_scheduler_type` | cosine |" in card
