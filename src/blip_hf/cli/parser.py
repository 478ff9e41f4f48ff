# SPDX-License-Identifier: BSD-3-Clause
"""The parser of every command, built from the dataclass of its options.

A field of the dataclass is an option; its `metadata` may hold `help`, `metavar`, `positional` (the option may be given by its
place alone), `old_names` (spellings that work for one more version) and `hidden` (not in the help).
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from .config_file import read_options
from .errors import UsageError, suggest
from .option_types import FALSE_WORDS, TRUE_WORDS, OptionType, help_of, is_required, metavar_of
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
    "save_steps": ("N", "Steps between checkpoints"),
    "seed": ("N", "Random seed"),
    "resume_from_checkpoint": ("CHECKPOINT", "Checkpoint of an interrupted run to resume from"),
    "report_to": ("NAME", "Experiment tracker, such as wandb"),
}


@dataclass(frozen=True)
class Command:
    """A command: the dataclass of its options and the function that takes them.

    `trainer_arguments` gives the class of the trainer's arguments and the defaults to change there; it is called only when
    they are needed. A command that `resumes` goes on in an output folder that is not empty.
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
        default=None, metadata={"help": "YAML file of options by name; options on the command line win"}
    )


class OptionParser(argparse.ArgumentParser):
    """Parses the options of dataclasses, with `-` and `_` alike, and raises [`UsageError`] on a mistake.

    `read` returns only the options that were given, so that every default stays in its dataclass.
    """

    def __init__(self, prog: str, description: str = "") -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False, add_help=False)
        self.fields: dict[str, Field] = {}
        self.option_types: dict[str, OptionType] = {}
        self.old_names: dict[str, str] = {}
        self.arguments = self.add_argument_group("arguments")
        self.options = self.add_argument_group("options")

    def error(self, message: str) -> NoReturn:
        """Raises in place of printing the usage."""
        raise UsageError(f"{message.removeprefix('argument ')}. `{self.prog} --help` lists the options.")

    def add_options(self, options: type) -> None:
        """Adds an option for each field of a dataclass."""
        hints = get_type_hints(options)
        for option in fields(options):
            if option.init:
                self._add_option(option, OptionType.of(hints[option.name]))

    def _add_option(self, option: Field, option_type: OptionType) -> None:
        self.fields[option.name] = option
        self.option_types[option.name] = option_type
        self.old_names |= dict.fromkeys(option.metadata.get("old_names", ()), option.name)
        choices = option_type.choices or option.metadata.get("choices")
        nargs = "?" if option_type.is_bool else "+" if option_type.is_list else None
        nargs = option.metadata.get("nargs", nargs)
        group = self.arguments if option.metadata.get("positional") else self.options
        group.add_argument(
            f"--{option.name}",
            type=option_type.convert,
            choices=choices,
            nargs=nargs,
            const=option.metadata.get("const", True) if nargs == "?" else None,
            metavar=metavar_of(option, option_type) if choices is None or option_type.choices else None,
            default=argparse.SUPPRESS,
            help=help_of(option, option_type),
        )

    def read(self, tokens: Iterable[str]) -> dict[str, Any]:
        """The options that the words of a command line give."""
        words = list(tokens)
        end = words.index("--") if "--" in words else len(words)
        namespace, rest = self.parse_known_args(list(self._spell(words[:end])))
        if unknown := [word for word in rest if word.startswith("-") and word != "-"]:
            self._resolve(unknown[0].lstrip("-"))
        given = vars(namespace)
        return given | self._read_positionals([*rest, *words[end + 1 :]], given)

    def _spell(self, tokens: Iterable[str]) -> Iterator[str]:
        """Spells options as they are declared, and attaches a value to each switch."""
        tokens = list(tokens)
        while tokens:
            token = tokens.pop(0)
            if not token.startswith("--") or " " in token.partition("=")[0]:
                yield token
                continue
            written, is_assigned, value = token[2:].partition("=")
            name, is_negated = self._resolve(written)
            if self.option_types[name].is_bool and not is_assigned:
                is_value = bool(tokens) and tokens[0].lower() in TRUE_WORDS | FALSE_WORDS and not is_negated
                yield f"--{name}={tokens.pop(0) if is_value else not is_negated}"
            else:
                yield f"--{name}={value}" if is_assigned else f"--{name}"

    def _resolve(self, written: str) -> tuple[str, bool]:
        """The field that an option names, and whether it is negated, as in `--no_augment`."""
        name = written.replace("-", "_")
        if name in self.old_names and name not in self.fields:
            new = self.old_names[name]
            print(f"{self.prog}: warning: --{name} is now --{new}; --{name} will be removed.", file=sys.stderr)
            return new, False
        if name in self.fields:
            return name, False
        positive = name.removeprefix("no_")
        if positive != name and positive in self.fields and self.option_types[positive].is_bool:
            return positive, True
        known = [*(f"--{known}" for known in self.fields), "--help", "--help_all"]
        raise UsageError(
            f"--{written} is unknown.{suggest(f'--{name}', known)} `{self.prog} --help` lists the options."
        )

    def _read_positionals(self, words: list[str], given: Mapping[str, Any]) -> dict[str, Any]:
        free = [name for name, option in self.fields.items() if option.metadata.get("positional")]
        found: dict[str, Any] = {}
        for name in free:
            if name in given or not words:
                continue
            is_list = self.option_types[name].is_list
            taken, words = (words, []) if is_list else (words[:1], words[1:])
            values = [getattr(self.parse_args([f"--{name}={word}"]), name) for word in taken]
            found[name] = [value for (value,) in values] if is_list else values[0]
        if words:
            raise UsageError(f"{words[0]} is one argument too many. `{self.prog} --help` lists the options.")
        return found

    def read_file(self, path: Path) -> dict[str, Any]:
        """The options that a YAML file gives."""
        given: dict[str, Any] = {}
        for name, words in read_options(path).items():
            try:
                single = [f"--{name}={words[0]}"] if len(words) == 1 else [f"--{name}", *words]
                given |= self.read(single)
            except UsageError as error:
                raise UsageError(f"{path}: {error}") from error
        return given

    def check_complete(self, given: Mapping[str, Any]) -> None:
        """Raises if a required option is missing."""
        missing = [self._placeholder(name) for name in self.required_names() if name not in given]
        if missing:
            raise UsageError(f"{' and '.join(missing)} missing. `{self.prog} --help` lists the options.")

    def required_names(self) -> list[str]:
        """Names of the options without a default."""
        return [name for name, option in self.fields.items() if is_required(option)]

    def _placeholder(self, name: str) -> str:
        option, option_type = self.fields[name], self.option_types[name]
        metavar = metavar_of(option, option_type)
        several = f"{metavar} [{metavar} ...]" if option_type.is_list else metavar
        return several if option.metadata.get("positional") else f"--{name} {several}"

    def format_usage_line(self) -> str:
        """The usage: what is required, and the rest as `[options]`."""
        return " ".join([self.prog, *map(self._placeholder, self.required_names()), "[options]"])


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
        parsed.append(_make(trainer_class, {**defaults, **given}))
    if not (command.resumes or given.get("overwrite") or given.get("resume_from_checkpoint")):
        _refuse_existing_outputs(parsed, is_training=len(parsed) > 1)
    return tuple(parsed)


def _make(options: type, given: Mapping[str, Any]) -> Any:
    return options(**{option.name: given[option.name] for option in fields(options) if option.name in given})


def _refuse_existing_outputs(parsed: Iterable[Any], *, is_training: bool) -> None:
    remedy = "pass --overwrite" + (" or --resume_from_checkpoint" if is_training else "")
    for options in parsed:
        for name in {option.name for option in fields(options)} & set(OUTPUT_OPTIONS):
            if getattr(options, name) is not None:
                refuse_existing(getattr(options, name), remedy=remedy)


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
