# SPDX-License-Identifier: BSD-3-Clause
"""Processes that are forked from a server with all imports done, which starts once for all tests."""

import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from torch import multiprocessing

from blip_hf.cli import main


# The first start of a process determines what the server imports, so each use gives the same list.
_IMPORTED = ["blip_hf.capfilt.runner", "tests.support.streams", "tests.support.trainers"]


def forkserver() -> Any:
    """A context of `multiprocessing`. Where there are no fork servers, it starts interpreters."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


def run_apart(function: Callable[..., Any], *arguments: object) -> Any:
    """Returns the result of a function in a process of its own, which may fork and change modules."""
    with ProcessPoolExecutor(1, mp_context=forkserver()) as executor:
        return executor.submit(_call, multiprocessing.get_start_method(), function, *arguments).result()


def start_command(arguments: Iterable[object], folder: Path) -> multiprocessing.Process:
    """Starts `blip-hf` with arguments in a process of its own, which prints to the files `stdout` and `stderr`."""
    process = forkserver().Process(target=_run_command, args=(list(map(str, arguments)), folder))
    process.start()
    return process


def _run_command(arguments: list[str], folder: Path) -> None:
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), descriptor)
    sys.exit(main(arguments))


def _call(start_method: str, function: Callable[..., Any], *arguments: object) -> Any:
    # A process of the server would start its own ones by it too.
    multiprocessing.set_start_method(start_method, force=True)
    return function(*arguments)
