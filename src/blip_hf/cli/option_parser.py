# SPDX-License-Identifier: BSD-3-Clause
"""The parser of options that are fields of dataclasses."""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from .config_file import read_options
from .errors import UsageError, suggest
from .option_types import FALSE_WORDS, TRUE_WORDS, OptionType, help_of, is_required, metavar_of


class OptionParser(argparse.ArgumentParser):
    """Parses the options of dataclasses, with `-` and `_` alike, and raises [`UsageError`] on a mistake.

    `read` returns only the options that were given, so that every default stays in its dataclass.
    """

    def __init__(self, prog: str, description: str = "") -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False, add_help=False)
        self.fields: dict[str, Field] = {}
        self.option_types: dict[str, OptionType] = {}
        self.old_names: dict[str, str] = {}
        self.aliases: dict[str, str] = {}
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
        self.aliases |= dict.fromkeys(option.metadata.get("aliases", ()), option.name)
        choices = option_type.choices or option.metadata.get("choices")
        nargs = "?" if option_type.is_bool else "+" if option_type.is_list else None
        nargs = option.metadata.get("nargs", nargs)
        group = self.arguments if option.metadata.get("positional") else self.options
        group.add_argument(
            f"--{option.name}",
            action="extend" if option.metadata.get("repeatable") else "store",
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
        name = self.aliases.get(name, name)
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
        several = option.metadata.get("usage", several)
        return several if option.metadata.get("positional") else f"--{name} {several}"

    def format_usage_line(self) -> str:
        """The usage: what is required, and the rest as `[options]`."""
        return " ".join([self.prog, *map(self._placeholder, self.required_names()), "[options]"])


__all__ = ["OptionParser"]
