# SPDX-License-Identifier: BSD-3-Clause
"""YAML files of options and settings."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import UsageError


def read_yaml(path: Path) -> Any:
    """The content of a YAML file."""
    import yaml

    if not path.is_file():
        raise UsageError(f"{path} does not exist. Pass a YAML file; examples/recipes has some.")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be parsed as YAML: {error}") from error


def read_options(path: Path) -> dict[str, list[str]]:
    """The options of a YAML file: the words that would stand after each option on the command line."""
    content = read_yaml(path)
    if not isinstance(content, Mapping):
        raise UsageError(f"{path} holds a {type(content).__name__}, expected one option per line, such as `seed: 42`.")
    content = dict(content)
    if isinstance(content.get("data"), Mapping):  # sources with weights
        content["data"], content["data_weights"] = (list(part) for part in zip(*content["data"].items(), strict=True))
    return {str(name): _words(value) for name, value in content.items() if value is not None}


def _words(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [json.dumps(item) if isinstance(item, dict) else str(item) for item in values]


__all__ = ["read_options", "read_yaml"]
