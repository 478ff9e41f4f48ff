# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf convert`: an original checkpoint to a folder that `from_pretrained` opens, or back."""

import argparse
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from ..conversion import Conversion

# What has no meaning with --to-original.
_READING_OPTIONS = ("tokenizer", "training_state", "parts", "head_width")


def main(argv: Sequence[str] | None = None) -> int:
    """Converts, and prints what became of the tensors.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments after the name of the command. Those of the process by default.

    Returns:
        `int`: 0.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    for name in _READING_OPTIONS:
        if arguments.to_original and getattr(arguments, name):
            parser.error(f"--{name} is about reading originals: leave it out with --to-original")
    print(describe(convert(arguments), arguments))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command.

    Returns:
        `argparse.ArgumentParser`: its defaults of `None` leave the choice to `blip_hf.conversion`.
    """
    parser = argparse.ArgumentParser(
        prog="blip-hf convert",
        description="Turns a checkpoint of salesforce/BLIP or LAVIS, of any task, into a folder with a model and its"
        " processor, or a folder back into such a checkpoint. Folders of transformers need no conversion.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "source", metavar="SOURCE", help=".pth or .safetensors; with --to-original a folder or model id"
    )
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="new folder; with --to-original the .pth")
    parser.add_argument("--to-original", "--to_original", action="store_true", help="go from a folder to a .pth")
    parser.add_argument(
        "--tokenizer",
        help="folder or model id of the BERT tokenizer that the model was trained with (default: bert-base-uncased,"
        " from the Hub)",
    )
    parser.add_argument(
        "--training_state",
        action="store_true",
        help="keep momentum towers and queue of a pre-training or retrieval checkpoint, to go on training it",
    )
    parser.add_argument(
        "--parts",
        action="store_true",
        help="save the captioner and the retriever inside of a pre-training checkpoint too, in folders of their own",
    )
    parser.add_argument(
        "--head_width", type=int, help="width of an attention head (default: 64, that of every released model)"
    )
    return parser


def convert(arguments: argparse.Namespace) -> "Conversion":
    """Does what the arguments say.

    Args:
        arguments (`argparse.Namespace`):
            Of `build_parser`.

    Returns:
        `Conversion`: What became of the tensors.
    """
    from transformers.utils import logging

    from ..conversion import convert_original_checkpoint, restore_original_checkpoint

    logging.disable_progress_bar()
    if arguments.to_original:
        return restore_original_checkpoint(arguments.source, arguments.output)
    given = {name: getattr(arguments, name) for name in ("tokenizer", "head_width") if getattr(arguments, name)}
    return convert_original_checkpoint(
        arguments.source,
        arguments.output,
        keep_training_state=arguments.training_state,
        save_parts=arguments.parts,
        **given,
    )


def describe(conversion: "Conversion", arguments: argparse.Namespace) -> str:
    """One line on what was made, and a table of what was left out.

    Args:
        conversion (`Conversion`):
            What became of the tensors.
        arguments (`argparse.Namespace`):
            Of `build_parser`.

    Returns:
        `str`: The lines.
    """
    head = (
        f"{arguments.source} -> {arguments.output}: {conversion.model_class} at {conversion.image_size} px,"
        f" {conversion.num_tensors} tensors"
    )
    return "\n".join([head, *_table(conversion.dropped)])


def _table(dropped: Mapping[str, str]) -> list[str]:
    """Rows of names, their number and the reason; names of one part with one reason share a row."""
    if not dropped:
        return []
    counts = Counter((name.partition(".")[0], reason) for name, reason in dropped.items())
    rows = [("dropped", "tensors", "reason")]
    for (part, reason), count in counts.items():
        names = [name for name, why in dropped.items() if (name.partition(".")[0], why) == (part, reason)]
        rows.append((names[0] if count == 1 else _common_name(names), str(count), reason))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"  {name:<{widths[0]}}  {count:>{widths[1]}}  {reason}" for name, count, reason in rows]


def _common_name(names: Sequence[str]) -> str:
    """What the names share, stars for numbers and for the rest: `text_encoder_m.encoder.layer.*.crossattention.*`."""
    shared = []
    for components in zip(*(re.sub(r"\.\d+\.", ".*.", name).split(".") for name in names), strict=False):
        if len(set(components)) > 1:
            break
        shared.append(components[0])
    return ".".join([*shared, "*"])


__all__ = ["build_parser", "convert", "describe", "main"]
