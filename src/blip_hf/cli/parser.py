# SPDX-License-Identifier: BSD-3-Clause
"""The parser of every command, built from the dataclass of its options.

A field of the dataclass is an option; its `metadata` may hold `help`, `metavar`, `positional` (the option may be given by its
place alone), `usage` (how the usage shows it), `repeatable` (each use adds to the list; otherwise the last one counts),
`aliases` (other spellings), `old_names` (spellings that work for one more version) and `hidden` (not in the help).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..tasks.run_folder import RECORD_NAME
from .errors import UsageError, suggest
from .launcher import launched_process
from .option_parser import OptionParser
from .output import refuse_existing


HELP_FLAGS = {"-h", "--help"}
OUTPUT_OPTIONS = ("output", "output_dir")

# The most used options of transformers' TrainingArguments, which takes seconds to import: metavar and help.
COMMON_TRAINER_OPTIONS = {
    "output_dir": ("DIR", "Folder for the model, its processor and checkpoints"),
    "per_device_train_batch_size": ("N", "Records per batch and device"),
    "gradient_accumulation_steps": ("N", "Batches per optimizer step"),
    "num_train_epochs": ("N", "Number of epochs"),
    "max_steps": ("N", "Number of optimizer steps, in place of epochs"),
    "learning_rate": ("RATE", "Peak learning rate"),
    "lr_scheduler_type": ("NAME", "Learning rate schedule"),
    "warmup_steps": ("N", "Steps of linear warm-up"),
    "weight_decay": ("RATE", "Weight decay of AdamW"),
    "bf16": ("True|False", "Train in bfloat16"),
    "use_cpu": ("True|False", "Do not use an accelerator"),
    "dataloader_num_workers": ("N", "Processes that read images"),
    "logging_steps": ("N", "Steps between logs"),
    "eval_strategy": ("{no,steps,epoch}", "When to evaluate"),
    "load_best_model_at_end": (
        "True|False",
        "Keep the best checkpoint; --eval_strategy and --save_strategy must agree",
    ),
    "metric_for_best_model": ("NAME", "What is best, such as cider, accuracy or r_mean (default: loss)"),
    "save_steps": ("N", "Steps between checkpoints"),
    "seed": ("N", "Random seed"),
    "resume_from_checkpoint": (
        "CHECKPOINT",
        "Checkpoint to resume from, or True for the newest (default: the newest, if the same command was interrupted)",
    ),
    "report_to": ("NAME", "Experiment tracker, such as wandb"),
}


@dataclass(frozen=True)
class Command:
    """A command: the dataclass of its options and the function that takes them.

    `trainer_arguments` gives the class of the trainer's arguments and the defaults to change there; it is called only when
    they are needed. A command that `resumes` continues in an output folder that is not empty.
    """

    prog: str
    description: str
    options: type
    run: Callable[..., int | None]
    trainer_arguments: Callable[[], tuple[type, Mapping[str, Any]]] | None = None
    resumes: bool = False


@dataclass(frozen=True)
class CommandGroup:
    """A command that has one command per task."""

    prog: str
    commands: Mapping[str, Command]


@dataclass
class _Overwrite:
    overwrite: bool = field(
        default=False, metadata={"help": "Write to an existing file or a folder that is not empty"}
    )


@dataclass
class _Config:
    config: Path | None = field(
        default=None, metadata={"help": "YAML file of options by name; options on the command line override it"}
    )


def build_parser(command: Command, *, with_trainer: bool = True) -> OptionParser:
    """The parser of all options of a command."""
    parser = OptionParser(command.prog, command.description)
    parser.add_options(command.options)
    if "config" not in parser.fields and not all(f.metadata.get("positional") for f in fields(command.options)):
        parser.add_options(_Config)
    writes = command.trainer_arguments is not None or set(OUTPUT_OPTIONS) & parser.fields.keys()
    if writes and not command.resumes and "overwrite" not in parser.fields:
        parser.add_options(_Overwrite)
    if with_trainer and command.trainer_arguments is not None:
        trainer_class, _ = command.trainer_arguments()
        parser.add_options(trainer_class)
    parser.usage = parser.format_usage_line()
    return parser


def format_help(command: Command, *, with_trainer: bool = False) -> str:
    """The help of a command; without `with_trainer`, only the common options of the trainer, and no heavy import."""
    parser = build_parser(command, with_trainer=with_trainer)
    parser.options.add_argument("-h", "--help", action="store_true", help="Show this help")
    for action in parser.arguments._group_actions:
        action.option_strings = []  # shown by place; --name works too
    if command.trainer_arguments is not None and not with_trainer:
        group = parser.add_argument_group("trainer options (--help_all lists all, with defaults)")
        for name, (metavar, text) in COMMON_TRAINER_OPTIONS.items():
            group.add_argument(f"--{name}", metavar=metavar, help=text)
    return parser.format_help()


def parse(command: Command, argv: Sequence[str]) -> tuple[Any, ...]:
    """The options of a command, and the trainer's arguments if it trains.

    Raises:
        UsageError: If an option is unknown or missing, has a value of the wrong type, or the output exists.
    """
    parser = build_parser(command)
    given = parser.read(argv)
    if "config" in given and "config" not in {option.name for option in fields(command.options)}:
        given = {**parser.read_file(given["config"]), **given}
    parser.check_complete(given)
    parsed = [_make(command.options, given)]
    if command.trainer_arguments is not None:
        trainer_class, defaults = command.trainer_arguments()
        arguments = _make(trainer_class, {**defaults, **given})
        arguments.left_open = frozenset(f.name for f in fields(trainer_class)) - given.keys() - defaults.keys()
        parsed.append(arguments)
    if not (command.resumes or given.get("overwrite") or given.get("resume_from_checkpoint")):
        _refuse_existing_outputs(parsed, is_training=len(parsed) > 1)
    return tuple(parsed)


def _make(options: type, given: Mapping[str, Any]) -> Any:
    return options(**{option.name: given[option.name] for option in fields(options) if option.name in given})


def _refuse_existing_outputs(parsed: Iterable[Any], *, is_training: bool) -> None:
    process_index, _ = launched_process()
    if process_index > 0:
        return  # the first process may have written already
    remedy = "pass --overwrite" + (" or --resume_from_checkpoint" if is_training else "")
    for options in parsed:
        for name in {option.name for option in fields(options)} & set(OUTPUT_OPTIONS):
            path = getattr(options, name)
            if path is not None and not (is_training and Path(path, RECORD_NAME).is_file()):  # a run may resume
                refuse_existing(path, remedy=remedy)


def run(command: Command | CommandGroup, argv: Sequence[str]) -> int:
    """Runs a command, or prints its help.

    Returns:
        `int`: the exit status.
    """
    words = list(argv)
    if isinstance(command, CommandGroup):
        if not words or words[0] in HELP_FLAGS:
            print(format_commands(command.prog, {name: task.description for name, task in command.commands.items()}))
            return 0
        return run(choose(words[0], command.commands, command.prog), words[1:])
    options = words[: words.index("--")] if "--" in words else words
    if any(word.replace("-", "_") == "__help_all" for word in options):
        print(format_help(command, with_trainer=True))
        return 0
    if HELP_FLAGS & set(options):
        print(format_help(command))
        return 0
    return command.run(*parse(command, words)) or 0


def choose(name: str, known: Mapping[str, Any], prog: str) -> Any:
    """The entry of a table of commands.

    Raises:
        UsageError: If there is none of that name.
    """
    if name not in known:
        raise UsageError(
            f"{name} is not a command of {prog}.{suggest(name, known)} The commands are {', '.join(known)}."
        )
    return known[name]


def format_commands(prog: str, descriptions: Mapping[str, str]) -> str:
    """The help of a command that has commands of its own."""
    width = max(map(len, descriptions))
    rows = [f"  {name:<{width}}  {description}" for name, description in descriptions.items()]
    return "\n".join(
        [
            f"usage: {prog} COMMAND [options]",
            "",
            "commands:",
            *rows,
            "",
            f"`{prog} COMMAND --help` lists the options of a command.",
        ]
    )


__all__ = ["COMMON_TRAINER_OPTIONS", "Command", "CommandGroup", "build_parser", "format_help", "parse", "run"]
