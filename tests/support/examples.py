# SPDX-License-Identifier: BSD-3-Clause
"""The scripts in `examples/`, run in this process."""

import runpy
from typing import Any

from tests.support.paths import EXAMPLES


EXAMPLE_FILES = sorted(EXAMPLES.glob("*.py"))


def load_example(name: str) -> dict[str, Any]:
    """The global names of an example."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def run_example(name: str, *argv: object) -> None:
    load_example(name)["main"]([str(word) for word in argv])
