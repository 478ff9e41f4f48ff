# SPDX-License-Identifier: BSD-3-Clause
"""The command `blip-hf`: one module a sub-command, imported when it is called."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from .. import __version__


COMMANDS = {
    "pretrain": "pre-train BLIP with its three objectives",
    "finetune": "fine-tune for captioning, retrieval, questions or two-image reasoning",
    "evaluate": "measure a model at one of these tasks",
    "caption": "write captions for images",
    "capfilt": "clean image-text pairs by captioning and filtering",
    "convert": "turn an original .pth into a folder for from_pretrained, or back",
    "bootstrap": "run the whole loop: pre-train, clean the data, pre-train again",
    "demo": "pre-train, caption and match on built-in scenes, with a report",
}


def main(argv: Sequence[str] | None = None) -> int | None:
    """Runs a sub-command.

    A mistake of the user ends in one line on stderr and status 2; `--debug`, anywhere, lets the traceback through.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments. Those of the process by default.

    Returns:
        `int`, *optional*: The status to exit with.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    is_debugging = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    # The sub-command reads its own arguments, `--help` among them.
    command = build_parser().parse_args(arguments[:1]).command
    module = importlib.import_module(f".{command}", __name__)
    try:
        try:
            return module.main(arguments[1:])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return 1
    except Exception as error:
        message = _mistake(error)
        if is_debugging or message is None:
            raise
        print(f"blip-hf {command}: error: {' '.join(message.split())}", file=sys.stderr)
        return 2


def _nobody_reads() -> bool:
    """Whether the reader of stdout, such as `head`, has left; what is still to be written then goes nowhere."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _mistake(error: Exception) -> str | None:
    """What an error says to the user, or `None` where it is no mistake of theirs."""
    is_missing_extra = isinstance(error, ImportError) and "blip_hf[" in str(error)
    if isinstance(error, (ValueError, OSError)) or is_missing_extra:
        return str(error)
    # A configuration that refuses a value has that error as its cause.
    is_of_configuration = type(error).__module__ == "huggingface_hub.errors" and error.__cause__ is not None
    return str(error.__cause__) if is_of_configuration else None


def build_parser() -> argparse.ArgumentParser:
    """The parser of what stands before a sub-command's own arguments.

    Returns:
        `argparse.ArgumentParser`: knows the sub-commands and `--version`.
    """
    width = max(len(name) for name in COMMANDS)
    summary = "\n".join(f"  {name:<{width}}  {purpose}" for name, purpose in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="blip-hf",
        usage="blip-hf [--version] [--debug] COMMAND ...",
        description="BLIP: pre-training, captioning and image-text matching.",
        epilog=f"commands:\n{summary}\n\n`blip-hf COMMAND --help` tells what a command takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="what to do, see below")
    parser.add_argument("--version", action="version", version=f"blip-hf {__version__}")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    return parser


__all__ = ["COMMANDS", "build_parser", "main"]
