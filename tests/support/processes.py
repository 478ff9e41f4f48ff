# SPDX-License-Identifier: BSD-3-Clause
"""Runs Python in a subprocess with the package on its path."""

import os
import subprocess
import sys
import textwrap

from tests.support.paths import ROOT


def run_python(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the interpreter on `arguments`; keyword arguments are added to the environment."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True)


def run_code(code: str, *arguments: object, **environment: str) -> str:
    """Runs Python code, which may be indented, and returns what it prints; fails with its error output."""
    result = run_python("-c", textwrap.dedent(code), *arguments, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout
