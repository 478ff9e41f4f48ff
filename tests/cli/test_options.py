# SPDX-License-Identifier: BSD-3-Clause
"""Options from flags and YAML, and the help of the commands that train and evaluate."""

import dataclasses

import pytest

from blip_hf.cli import pretrain
from blip_hf.cli.options import COMMON_TRAINER_FLAGS, build_parser, parse_options
from blip_hf.training import BlipTrainingArguments


def parse(tmp_path, text, *flags):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return parse_options(pretrain.COMMAND, ["--config", str(path), *flags])


def test_a_yaml_file_holds_flags_and_flags_win(tmp_path):
    text = """
        data: [one.json, two.json]
        output_dir: runs/x
        queue_size: 64
        augment: false
        image_mean: null
        learning_rate: 1.0e-4
        lr_scheduler_type: cosine_with_min_lr
        lr_scheduler_kwargs: {min_lr: 1.0e-6}
        use_cpu: true
    """
    options, arguments = parse(tmp_path, text, "--queue_size", "32")
    assert (options.data, options.queue_size, options.augment, options.image_mean) == (
        ["one.json", "two.json"],
        32,
        False,
        None,
    )
    assert (arguments.learning_rate, arguments.lr_scheduler_kwargs) == (1e-4, {"min_lr": 1e-6})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("queue: 64", "names queue, which blip-hf pretrain does not know"),
        ("- data", "holds a list, expected one option a line"),
        ("data: [", "cannot be parsed as YAML"),
    ],
)
def test_a_yaml_file_that_does_not_fit_says_why(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        parse(tmp_path, text)


def test_help_lists_every_option(capsys):
    assert parse_options(pretrain.COMMAND, ["--help"]) is None
    listed = capsys.readouterr().out
    assert [option.name for option in dataclasses.fields(pretrain.COMMAND.options) if option.name not in listed] == []
    assert set(COMMON_TRAINER_FLAGS) <= {option.name for option in dataclasses.fields(BlipTrainingArguments)}


def test_help_all_lists_the_options_of_the_trainer_too(capsys):
    assert parse_options(pretrain.COMMAND, ["--help_all"]) is None
    listed = capsys.readouterr().out  # every option, so that no `%` in a help text breaks it
    names = {action.dest for action in build_parser(pretrain.COMMAND)._actions}
    assert [name for name in names if f"--{name}" not in listed and f"--no_{name}" not in listed] == []
