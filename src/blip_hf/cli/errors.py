# SPDX-License-Identifier: BSD-3-Clause
"""Errors of the command line: what the user sees, in one line."""

import difflib
from collections.abc import Iterable

from ..checkpoints import WrongCheckpointError


class UsageError(ValueError):
    """A command line or a file of options that cannot be run as written."""


def suggest(name: str, known: Iterable[str]) -> str:
    """A question that names the known word nearest to an unknown one, or an empty text.

    Example:
        >>> suggest("capton", ["caption", "capfilt"])
        ' Did you mean caption?'
        >>> suggest("zebra", ["caption", "capfilt"])
        ''
    """
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {nearest[0]}?" if nearest else ""


def message_of(error: Exception) -> str | None:
    """The message for the user, in one line, or `None` for an error of the program, which needs its traceback."""
    cause = error.__cause__
    # transformers and huggingface_hub wrap the error of a configuration that refuses a value.
    if type(error).__module__ == "huggingface_hub.errors" and cause is not None:
        return _one_line(cause)
    if isinstance(error, WrongCheckpointError):  # its remedies are Python
        return f"{error.problem} Pass a checkpoint of {error.model_class}."
    is_missing_extra = isinstance(error, ImportError) and "blip_hf[" in str(error)
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):  # torch has no class for it
        return f"{_one_line(error)} A process that reads images ended, such as for lack of memory. Pass --workers 0."
    return _one_line(error) if isinstance(error, (ValueError, OSError)) or is_missing_extra else None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


__all__ = ["UsageError", "message_of", "suggest"]
