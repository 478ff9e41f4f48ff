# SPDX-License-Identifier: BSD-3-Clause
"""The field of a dataclass that is an option of a command."""

from dataclasses import field
from typing import Any


def option(default: Any, help_text: str, metavar: str | None = None) -> Any:
    """Returns the dataclass field of an option."""
    metadata = {"help": help_text} if metavar is None else {"help": help_text, "metavar": metavar}
    return field(default=default, metadata=metadata)


__all__ = ["option"]
