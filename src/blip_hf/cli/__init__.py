# SPDX-License-Identifier: BSD-3-Clause
"""The command `blip-hf`: one module per command, imported when it is called."""

import importlib
import sys
from collections.abc import Sequence

from .. import __version__
from .errors import UsageError, message_of
from .output import escape_controls, escape_unprintable, silence_closed_streams
from .parser import Command, CommandGroup, choose, format_commands, run
from .stop_signals import Stopped


COMMANDS = {
    "pretrain": "Pre-trains BLIP with its three objectives",
    "finetune": "Fine-tunes for captioning, retrieval, VQA or NLVR2",
    "evaluate": "Evaluates a model on one of these tasks",
    "caption": "Captions images",
    "ask": "Answers questions about images",
    "match": "Compares images with texts",
    "index": "Indexes images, to search them by text or by image",
    "search": "Searches an index of images",
    "app": "Opens a page to try models and browse a CapFilt run",
    "capfilt": "Cleans image-text pairs by captioning and filtering",
    "serve": "Serves a checkpoint over HTTP",
    "export": "Exports a checkpoint to OpenVINO or ONNX, also in int8",
    "convert": "Converts an original .pth to a folder for from_pretrained, or back",
    "bootstrap": "Runs the whole loop: pre-train, clean the data, pre-train again",
    "push": "Pushes a model with its card to the Hub",
    "demo": "Pre-trains a small BLIP on drawn scenes, with a report",
    "plan": "Estimates memory, time and data rates of a pre-training",
    "env": "Prints the versions and hardware that a bug report needs",
    "completion": "Prints a completion script for bash, zsh or fish",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    An error of the user ends in one line on stderr and status 2; `--debug`, anywhere, shows its traceback.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments. Defaults to those of the process.

    Returns:
        `int`: the exit status.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    is_debugging = "--debug" in words
    words = [word for word in words if word != "--debug"]
    escape_unprintable()
    prog = " ".join(["blip-hf", *(word for word in words[:1] if word in COMMANDS)])
    try:
        status = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:
        if not silence_closed_streams():
            raise
        return 1
    except KeyboardInterrupt as stop:
        print(f"{prog}: interrupted", file=sys.stderr)
        return stop.status if isinstance(stop, Stopped) else 130
    except Exception as error:
        message = message_of(error)
        if is_debugging or message is None:
            raise
        print(f"{prog}: error: {escape_controls(message)}", file=sys.stderr)
        silence_closed_streams()
        return 2
    return status


def _run(words: Sequence[str]) -> int:
    if not words:
        raise UsageError(f"no command given. The commands are {', '.join(COMMANDS)}.")
    if words[0] == "--version":
        print(f"blip-hf {__version__}")
        return 0
    if words[0] in ("-h", "--help"):
        print(f"{format_commands('blip-hf', COMMANDS)}\n`--version` prints the version, `--debug` shows tracebacks.")
        return 0
    choose(words[0], COMMANDS, "blip-hf")
    return run(load_command(words[0]), words[1:])


def load_command(name: str) -> Command | CommandGroup:
    """The command of a name in `COMMANDS`."""
    return importlib.import_module(f".{name}", __name__).COMMAND


__all__ = ["COMMANDS", "load_command", "main"]
