# SPDX-License-Identifier: BSD-3-Clause
"""What commands say about images that they skipped."""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

from .output import escape_controls


class Failure(Protocol):
    """A result for an image that could not be read."""

    @property
    def image_index(self) -> int:
        """Position of the image."""

    @property
    def error(self) -> str | None:
        """Why it could not be read."""

    @property
    def error_kind(self) -> str | None:
        """The kind of this error."""


def report_skipped(prog: str, failures: Sequence[Failure], names: Sequence[str]) -> int:
    """Names images that could not be read on stderr. Returns the exit status, 1 if none could."""
    for failure in failures:
        say(prog, f"skipped: {named_error(str(failure.error), names[failure.image_index])}")
    return count_skipped(prog, [str(failure.error_kind) for failure in failures], len(names))


def named_error(error: str, name: str) -> str:
    """An error with the name of its image. One inside a file of records is not named by the error itself."""
    return error if name in error else f"{name}: {error}"


def count_skipped(prog: str, kinds: Iterable[str], num_images: int) -> int:
    """Says how many images were skipped, by kind. Returns the exit status, 1 if all were."""
    counts = Counter(kinds)
    if counts:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        say(prog, f"skipped {counts.total()} of {num_images} images ({listed})")
    return 1 if counts.total() == num_images else 0


def say(prog: str, message: str) -> None:
    """Prints a message of a command on stderr."""
    print(f"{prog}: {escape_controls(message)}", file=sys.stderr)


__all__ = ["Failure", "count_skipped", "named_error", "report_skipped", "say"]
