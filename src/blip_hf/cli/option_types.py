# SPDX-License-Identifier: BSD-3-Clause
"""How a field of a dataclass reads on the command line: its type, choices, metavar and help."""

import argparse
import json
import types
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin


TRUE_WORDS = {"true", "yes", "t", "y", "1"}
FALSE_WORDS = {"false", "no", "f", "n", "0"}

# Of options that several commands and transformers' TrainingArguments share, by name or by the name's last word.
_METAVARS_OF_NAMES = {
    "annotations": "FILE",
    "captioner": "CHECKPOINT",
    "checkpoint": "CHECKPOINT",
    "config": "FILE",
    "data": "SOURCE",
    "device": "DEVICE",
    "dir": "DIR",
    "drop_path": "RATE",
    "dropout": "RATE",
    "filter": "CHECKPOINT",
    "labels": "FILE",
    "list": "FILE",
    "matcher": "CHECKPOINT",
    "model": "CHECKPOINT",
    "output": "FILE",
    "rate": "RATE",
    "root": "DIR",
    "run": "DIR",
    "source": "SOURCE",
    "split": "SPLIT",
    "temperature": "TEMPERATURE",
    "text": "CHECKPOINT",
    "tokenizer": "TOKENIZER",
    "vision": "CHECKPOINT",
    "weight": "WEIGHT",
}
_METAVARS_OF_TYPES = {int: "N", float: "X", Path: "PATH", json.loads: "JSON"}


@dataclass(frozen=True)
class OptionType:
    """Type of the values of an option."""

    convert: Callable[[str], Any]
    choices: tuple[Any, ...] | None = None
    is_list: bool = False

    @property
    def is_bool(self) -> bool:
        """Whether the option is on or off."""
        return self.convert is to_bool

    @classmethod
    def of(cls, hint: Any) -> "OptionType":
        """The type for an annotation, such as `int`, `float | None`, `list[str]` or `Literal["itm", "itc"]`."""
        is_union = get_origin(hint) in (Union, types.UnionType)
        members = [member for member in get_args(hint) if member is not type(None)] if is_union else [hint]
        enums = [member for member in members if isinstance(member, type) and issubclass(member, Enum)]
        if enums:
            return cls(str, choices=tuple(item.value for item in enums[0]))
        if str in members:
            return cls(str)
        (member, *_) = members
        if get_origin(member) is Literal:
            return cls(str, choices=get_args(member))
        if get_origin(member) is list:
            return cls(cls.of(get_args(member)[0]).convert, is_list=True)
        if member is bool:
            return cls(to_bool)
        return cls(json.loads if get_origin(member) is dict else member)


def to_bool(text: str) -> bool:
    """Reads `True` or `False`, in the spellings that YAML and people use."""
    if text.lower() not in TRUE_WORDS | FALSE_WORDS:
        raise ValueError(text)
    return text.lower() in TRUE_WORDS


def metavar_of(option: Field, option_type: OptionType) -> str:
    """The placeholder of a value: the field's own, or that of its name or its type."""
    if option_type.is_bool:
        return "True|False"
    if option_type.choices:
        return "{" + ",".join(map(str, option_type.choices)) + "}"
    if "metavar" in option.metadata:
        return option.metadata["metavar"]
    of_type = _METAVARS_OF_TYPES.get(option_type.convert, "TEXT")
    of_name = {name: _METAVARS_OF_NAMES.get(name) for name in (option.name, option.name.rpartition("_")[2])}
    return next(filter(None, of_name.values()), of_type)


def is_required(option: Field) -> bool:
    """Whether a field has no default."""
    return option.default is MISSING and option.default_factory is MISSING


def help_of(option: Field, option_type: OptionType) -> str:
    """The help text with the default, for argparse."""
    if option.metadata.get("hidden"):
        return argparse.SUPPRESS
    text = option.metadata.get("help", "").strip()
    default = option.default if option.default_factory is MISSING else option.default_factory()
    if default not in (None, MISSING, False, "", []) or (option_type.convert in (int, float) and default == 0):
        value = default.value if isinstance(default, Enum) else default
        off = f"; --no_{option.name} for False" if default is True else ""
        text = f"{text.rstrip('.')} (default: {value}{off})"
    return text.replace("%", "%%")


__all__ = ["FALSE_WORDS", "TRUE_WORDS", "OptionType", "help_of", "is_required", "metavar_of", "to_bool"]
