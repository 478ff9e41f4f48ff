# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf push`: the folder of a model to a repository of the Hub."""

from dataclasses import dataclass, field
from pathlib import Path

from .parser import Command


@dataclass(kw_only=True)
class PushOptions:
    """Options of `blip-hf push`."""

    folder: Path = field(metadata={"help": "Folder of a saved model", "positional": True, "metavar": "DIR"})
    repo: str = field(metadata={"help": "Repository, as owner/name", "positional": True, "metavar": "REPO"})
    private: bool = field(default=False, metadata={"help": "Make a new repository private"})
    include: list[str] = field(
        default_factory=list,
        metadata={"help": "Push further files of the folder, such as 'adapter/*'", "metavar": "PATTERN"},
    )
    dry_run: bool = field(default=False, metadata={"help": "List the files and their sizes, and send nothing"})


def _run(options: PushOptions) -> None:
    from ..hub import plan_upload, push_folder

    if options.dry_run:
        upload = plan_upload(options.folder, options.repo, include=options.include)
        print("\n".join(_describe(upload.sizes(), upload.left_out, options)))
        return
    address = push_folder(options.folder, options.repo, private=options.private or None, include=options.include)
    print(address)


def _describe(sizes: dict[str, int], left_out: list[str], options: PushOptions) -> list[str]:
    """The files with their sizes, and the names of those that are not pushed."""
    rows = [f"{size:>15,}  {name}" for name, size in sizes.items()]
    head = f"{options.folder} -> {options.repo}: {len(sizes)} files, {sum(sizes.values()):,} bytes"
    rest = [f"not pushed: {', '.join(left_out)}"] if left_out else []
    return [head, *rows, *rest]


COMMAND = Command(
    prog="blip-hf push",
    description="Pushes the folder of a model to the Hub: weights, configuration, processor and model card, and for a class"
    " that transformers lacks its code. Checkpoints, optimizer states and records of the run are not pushed.",
    options=PushOptions,
    run=_run,
)

__all__ = ["COMMAND", "PushOptions"]
