# SPDX-License-Identifier: BSD-3-Clause
"""Parsers from dataclasses: spellings, types, metavars, YAML files, old names and existing outputs."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import pytest

from blip_hf.cli import COMMANDS, load_command, pretrain
from blip_hf.cli.errors import UsageError
from blip_hf.cli.parser import COMMON_TRAINER_OPTIONS, Command, CommandGroup, build_parser, format_help, parse, run
from blip_hf.training import BlipTrainingArguments


def sub_commands():
    for name in COMMANDS:
        command = load_command(name)
        yield from command.commands.values() if isinstance(command, CommandGroup) else [command]


@dataclass(kw_only=True)
class Options:
    model: str = field(metadata={"help": "Checkpoint.", "positional": True})
    images: list[Path] = field(metadata={"help": "Images", "positional": True, "metavar": "IMAGE"})
    drop_path: float = field(default=0.1, metadata={"help": "Rate in 100%."})
    batch_size: int | None = field(default=None, metadata={"help": "Images per batch"})
    augment: bool = field(default=True, metadata={"help": "Augment"})
    fast_mode: bool = field(default=False, metadata={"help": "Fast"})
    by: Literal["itm", "itc"] = field(default="itm", metadata={"help": "Score"})
    output_dir: str | None = field(default=None, metadata={"help": "Folder", "old_names": ["output"]})


TOY = Command(prog="blip-hf toy", description="Toys.", options=Options, run=lambda options: None)


def parse_toy(*argv):
    return parse(TOY, ["m", "a.png", *argv])[0]


@pytest.mark.parametrize("command", list(sub_commands()), ids=lambda command: command.prog)
def test_options_accept_hyphens_and_underscores(command):
    parser = build_parser(command, with_trainer=False)
    for name, option_type in parser.option_types.items():
        value = str(option_type.choices[0]) if option_type.choices else "1"
        expected = parser.read([f"--{name}={value}"])
        assert expected.keys() == {name}
        assert parser.read([f"--{name.replace('_', '-')}", value]) == expected


@pytest.mark.parametrize("command", list(sub_commands()), ids=lambda command: command.prog)
def test_folders_are_output_dir_and_files_are_output(command):
    parser = build_parser(command)
    names = {name for name in parser.fields if "output" in name and "hub" not in name}
    assert names <= {"output", "output_dir"}
    help_text = format_help(command)
    assert "output" not in names or "--output FILE" in help_text
    assert "output_dir" not in names or "--output_dir DIR" in help_text


def test_positional_arguments_may_stand_between_options():
    options = parse_toy("--fast-mode", "b.png", "--batch_size", "4", "c.png")
    assert (options.model, options.images) == ("m", [Path("a.png"), Path("b.png"), Path("c.png")])
    assert (options.fast_mode, options.batch_size) == (True, 4)
    assert parse(TOY, ["--model", "m", "--images", "a.png"])[0].images == [Path("a.png")]
    assert parse(TOY, ["m", "--", "-a.png"])[0].images == [Path("-a.png")]


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], True),
        (["--augment"], True),
        (["--augment", "False"], False),
        (["--augment=no"], False),
        (["--no_augment"], False),
        (["--no-augment"], False),
    ],
)
def test_switches_take_a_value_or_none(words, value):
    assert parse_toy(*words).augment is value


def test_help_shows_types_and_defaults():
    text = format_help(TOY)
    assert text.startswith("usage: blip-hf toy CHECKPOINT IMAGE [IMAGE ...] [options]\n")
    for entry in (
        "--drop_path RATE Rate in 100% (default: 0.1)",
        "--batch_size N Images per batch",
        "--augment [True|False] Augment (default: True; --no_augment for False)",
        "--by {itm,itc} Score (default: itm)",
    ):
        assert entry in " ".join(text.split())


def test_deprecated_option_works_with_a_warning(tmp_path, capsys):
    assert parse_toy("--output", str(tmp_path)).output_dir == str(tmp_path)
    assert capsys.readouterr().err == (
        "blip-hf toy: warning: --output is now --output_dir; --output will be removed.\n"
    )


def test_a_missing_option_is_named_with_its_metavar():
    with pytest.raises(UsageError, match=r"CHECKPOINT and IMAGE \[IMAGE ...\] missing"):
        parse(TOY, [])


def test_an_existing_output_needs_overwrite(tmp_path):
    assert parse_toy("--output_dir", str(tmp_path / "new"))
    assert parse_toy("--output_dir", str(tmp_path))  # an empty folder
    (tmp_path / "a.txt").touch()
    with pytest.raises(UsageError, match=r"is not empty. Pass another folder, or pass --overwrite"):
        parse_toy("--output_dir", str(tmp_path))
    assert parse_toy("--output_dir", str(tmp_path), "--overwrite")
    with pytest.raises(UsageError, match=r"a\.txt exists"):
        parse_toy("--output_dir", str(tmp_path / "a.txt"))


def test_only_the_first_process_of_a_launcher_checks_the_output(tmp_path, monkeypatch):
    (tmp_path / "written_by_the_first.txt").touch()
    monkeypatch.setenv("RANK", "1")
    assert parse_toy("--output_dir", str(tmp_path))


def test_training_resumes_in_an_existing_folder(tmp_path):
    (tmp_path / "config.json").touch()
    argv = ["--data", "scenes", "--output_dir", str(tmp_path), "--use_cpu"]
    with pytest.raises(UsageError, match="--overwrite or --resume_from_checkpoint"):
        parse(pretrain.COMMAND, argv)
    _, arguments = parse(pretrain.COMMAND, [*argv, "--resume_from_checkpoint", "checkpoint-1"])
    assert arguments.resume_from_checkpoint == "checkpoint-1"


@pytest.mark.parametrize(("command", "task"), [("capfilt", "run"), ("bootstrap", None)])
def test_commands_that_resume_take_a_folder_that_is_not_empty(command, task, tmp_path):
    (tmp_path / "a.txt").touch()
    command = load_command(command)
    command = command if task is None else command.commands[task]
    required = {"captioner": "c", "filter": "f", "source": "scenes:8"} if task else {}
    argv = [word for name, value in required.items() for word in (f"--{name}", value)]
    assert parse(command, [*argv, "--output", str(tmp_path)])  # the old name of --output_dir


def test_a_yaml_file_holds_options_and_the_command_line_wins(tmp_path):
    values = {
        "data": ["one.json", "two.json"],
        "output-dir": "runs/x",
        "queue_size": 64,
        "augment": False,
        "image_mean": None,
        "learning-rate": 1e-4,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": 0.001},
        "use_cpu": True,
    }
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    options, arguments = parse(pretrain.COMMAND, ["--config", str(path), "--queue_size", "32"])
    assert (options.data, options.queue_size, options.augment, options.image_mean) == (
        ["one.json", "two.json"],
        32,
        False,
        None,
    )
    assert (arguments.learning_rate, arguments.lr_scheduler_kwargs) == (1e-4, {"min_lr": 0.001})
    assert arguments.output_dir == "runs/x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_sise: 64", "--batch_sise is unknown. Did you mean --batch_size?"),
        ("- data", "holds a list, expected one option per line"),
        ("data: [", "cannot be parsed as YAML"),
        (None, "does not exist"),
    ],
)
def test_invalid_yaml_file_raises_with_its_name(text, message, tmp_path):
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError) as error:
        parse_toy("--config", str(path))
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_help_lists_every_option(capsys):
    assert run(pretrain.COMMAND, ["--help"]) == 0
    listed = capsys.readouterr().out
    assert [option.name for option in fields(pretrain.COMMAND.options) if f"--{option.name} " not in listed] == []
    assert [name for name in COMMON_TRAINER_OPTIONS if f"--{name} " not in listed] == []
    assert COMMON_TRAINER_OPTIONS.keys() <= {option.name for option in fields(BlipTrainingArguments)}


@pytest.mark.parametrize("flag", ["--help_all", "--help-all"])
def test_help_all_lists_the_options_of_the_trainer(flag, capsys):
    assert run(pretrain.COMMAND, [flag]) == 0
    listed = capsys.readouterr().out  # every option, so that no `%` in a help text breaks it
    assert [name for name in build_parser(pretrain.COMMAND).fields if f"--{name} " not in listed] == []


def test_every_option_of_the_trainer_is_read_as_its_type():
    words = [
        "--bf16",
        "True",
        "--optim",
        "adamw_torch",
        "--eval_strategy",
        "steps",
        "--report_to",
        "none",
        "--tf32",
        "0",
    ]
    words += ["--label_names", "a", "b", "--eval_steps", "0.5", "--gradient_checkpointing_kwargs", '{"a": 1}']
    given = build_parser(pretrain.COMMAND).read(words)
    assert given == {
        "bf16": True,
        "optim": "adamw_torch",
        "eval_strategy": "steps",
        "report_to": "none",
        "tf32": False,
        "label_names": ["a", "b"],
        "eval_steps": 0.5,
        "gradient_checkpointing_kwargs": '{"a": 1}',
    }


@dataclass
class OtherSpellings:
    images: list[str] = field(metadata={"positional": True})
    text: list[str] = field(default_factory=list, metadata={"help": "Texts", "repeatable": True})
    data: list[str] = field(default_factory=list, metadata={"help": "Sources"})
    workers: int = field(default=0, metadata={"help": "Threads", "aliases": ["num_workers"]})


def test_a_repeatable_list_grows_and_an_alias_is_the_option(tmp_path, capsys):
    command = Command(prog="blip-hf toy", description="Toys.", options=OtherSpellings, run=lambda options: None)
    words = ["a", "--text", "b", "c", "--num-workers", "3", "--text", "d", "--data", "e", "--data", "f"]
    (options,) = parse(command, words)
    assert (options.images, options.text, options.data, options.workers) == (["a"], ["b", "c", "d"], ["f"], 3)
    assert capsys.readouterr().err == ""
    (tmp_path / "options.yaml").write_text("text: [e, f]\nnum_workers: 2\n")
    (options,) = parse(command, ["a", "--config", str(tmp_path / "options.yaml")])
    assert (options.text, options.workers) == (["e", "f"], 2)
