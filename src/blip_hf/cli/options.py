# SPDX-License-Identifier: BSD-3-Clause
"""Options of the commands that train and evaluate: dataclasses, from flags and from a YAML file, with a quick help."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from transformers import HfArgumentParser

HELP_FLAGS = {"-h", "--help"}
CONFIG_FLAG = "--config"

COMMON_TRAINER_FLAGS = (
    "output_dir",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "bf16",
    "use_cpu",
    "dataloader_num_workers",
    "logging_steps",
    "eval_strategy",
    "save_steps",
    "seed",
    "resume_from_checkpoint",
    "report_to",
)


@dataclass(frozen=True)
class Command:
    """What a command takes, for its help and its parser.

    Args:
        prog (`str`):
            Name, as in `blip-hf pretrain`.
        description (`str`):
            One sentence on what it does.
        options (`type`):
            Dataclass of its own options.
        usage (`str`):
            What it cannot do without, as in `--data SOURCE [SOURCE ...]`.
        trainer_arguments (`Callable`, *optional*):
            Gives the class of the trainer's arguments, which is imported only when they are parsed. `None` for a command
            that does not train.
        trainer_defaults (`Mapping`, *optional*):
            Defaults of the command among the trainer's arguments, where they differ from the class's.
    """

    prog: str
    description: str
    options: type
    usage: str
    trainer_arguments: Callable[[], type] | None = None
    trainer_defaults: Mapping[str, Any] = field(default_factory=dict)


def parse_options(command: Command, argv: Sequence[str]) -> tuple[Any, ...] | None:
    """Reads the options of a command, or prints its help.

    `--config FILE` names a YAML file whose keys are flags; flags beside it win. `--help` prints the command's own options
    within a fraction of a second, `--help_all` those of the trainer too.

    Args:
        command (`Command`):
            The command.
        argv (`Sequence[str]`):
            What stands after its name.

    Returns:
        `tuple`, *optional*: Its options, and the trainer's arguments where it trains. `None` after printing help.

    Raises:
        ValueError: If the file is no mapping or names an unknown option.
    """
    arguments = list(argv)
    if HELP_FLAGS & set(arguments):
        print(build_help_parser(command).format_help())
        return None
    parser = build_parser(command)
    if "--help_all" in arguments:
        parser.print_help()
        return None
    arguments = _with_config(parser, arguments)
    return parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)


def build_help_parser(command: Command) -> argparse.ArgumentParser:
    """A parser of a command's own options for `--help`, made without the seconds that transformers takes to import.

    Args:
        command (`Command`):
            The command.

    Returns:
        `argparse.ArgumentParser`: good for its help only.
    """
    epilog = None
    if command.trainer_arguments is not None:
        flags = "\n".join(f"  --{name}" for name in COMMON_TRAINER_FLAGS)
        epilog = f"trainer options, of which these are the most used (--help_all lists all, with defaults):\n{flags}"
    parser = argparse.ArgumentParser(
        prog=command.prog,
        usage=f"{command.prog} {command.usage} [options]",
        description=command.description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(CONFIG_FLAG, metavar="FILE", help="YAML file of options, by the names of flags; flags win.")
    for option in fields(command.options):
        default = "" if option.default in (None, MISSING) else f" Default: {option.default}."
        metavar = "SOURCE" if "data" in option.name else option.name.rpartition("_")[2].upper()
        help_text = (option.metadata["help"] + default).replace("%", "%%")
        is_flag = option.type in (bool, "bool")
        parser.add_argument(
            f"--{option.name}",
            nargs="?" if is_flag else None,
            metavar="True|False" if is_flag else metavar,
            help=help_text,
        )
    return parser


def build_parser(command: Command) -> "HfArgumentParser":
    """The parser of all options, the trainer's included.

    Args:
        command (`Command`):
            The command.

    Returns:
        `HfArgumentParser`: of its dataclass, and of the trainer's arguments where it trains.
    """
    from transformers import HfArgumentParser

    classes = [command.options]
    if command.trainer_arguments is not None:
        classes.append(command.trainer_arguments())
    parser = HfArgumentParser(tuple(classes), prog=command.prog, allow_abbrev=False)
    parser.set_defaults(**command.trainer_defaults)
    return parser


def parse_task(prog: str, commands: Mapping[str, Command], argv: Sequence[str]) -> tuple[str, tuple[Any, ...]] | None:
    """Reads the task and the options of a command that has one command a task, or prints the help of either.

    Args:
        prog (`str`):
            Name of the command.
        commands (`Mapping[str, Command]`):
            Its tasks.
        argv (`Sequence[str]`):
            What stands after its name.

    Returns:
        `tuple`, *optional*: the task and what `parse_options` gives for it. `None` after printing help.
    """
    width = max(map(len, commands))
    summary = "\n".join(f"  {task:<{width}}  {command.description}" for task, command in commands.items())
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} TASK ...",
        epilog=f"tasks:\n{summary}\n\n`{prog} TASK --help` tells what a task takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("task", choices=commands, metavar="TASK", help="see below")
    if not argv or argv[0] in HELP_FLAGS:
        print(parser.format_help())
        return None
    task = parser.parse_args(argv[:1]).task
    parsed = parse_options(commands[task], argv[1:])
    return None if parsed is None else (task, parsed)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Args:
        path (`Path`):
            The file.

    Returns:
        Anything: its content.

    Raises:
        ValueError: If there is no such file, or it cannot be parsed.
    """
    import yaml

    if not path.is_file():
        raise ValueError(f"{path} does not exist. Pass a YAML file of options; examples/recipes has some.")

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be parsed as YAML: {error}") from error


def _with_config(parser: "HfArgumentParser", arguments: list[str]) -> list[str]:
    """Puts the options of the YAML file before the flags, which thereby win."""
    config_parser = argparse.ArgumentParser(prog=parser.prog, add_help=False, allow_abbrev=False)
    config_parser.add_argument(CONFIG_FLAG, type=Path)
    known, flags = config_parser.parse_known_args(arguments)
    return flags if known.config is None else [*_flags_of_file(known.config, parser), *flags]


def _flags_of_file(path: Path, parser: "HfArgumentParser") -> list[str]:
    values = read_yaml(path)
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected one option a line, as in `seed: 42`.")
    accepted = {action.dest for action in parser._actions}
    unknown = sorted(str(key) for key in values if key not in accepted)
    if unknown:
        raise ValueError(
            f"{path} names {', '.join(unknown)}, which {parser.prog} does not know; `{parser.prog} --help_all` lists what"
            " it takes."
        )
    return [word for name, value in values.items() for word in _flag(name, value)]


def _flag(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    return [f"--{name}", *(json.dumps(item) if isinstance(item, dict) else str(item) for item in values)]


__all__ = ["COMMON_TRAINER_FLAGS", "Command", "build_help_parser", "build_parser", "parse_options", "parse_task"]
