# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf convert`: an original checkpoint to a folder that `from_pretrained` opens, or back."""

import re
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UsageError
from .parser import Command


if TYPE_CHECKING:
    from ..conversion import Conversion

_READING_OPTIONS = ("tokenizer", "training_state", "parts", "head_width")


@dataclass(kw_only=True)
class ConvertOptions:
    """What `blip-hf convert` takes. Options that are `None` keep the defaults of `blip_hf.conversion`."""

    source: str = field(
        metadata={
            "help": ".pth or .safetensors file; with --to_original a folder or model id",
            "positional": True,
            "metavar": "SOURCE",
        }
    )
    target: str | None = field(default=None, metadata={"positional": True, "hidden": True})  # old form of the next two
    output_dir: Path | None = field(default=None, metadata={"help": "New folder for the model and its processor"})
    output: Path | None = field(default=None, metadata={"help": "With --to_original: the .pth file to write"})
    to_original: bool = field(default=False, metadata={"help": "Convert a folder to a .pth file"})
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Folder or model id of the BERT tokenizer that the model was trained with (default:"
            " bert-base-uncased, from the Hub)"
        },
    )
    training_state: bool = field(
        default=False,
        metadata={
            "help": "Keep the momentum encoder and the queue of a pre-training or retrieval checkpoint, to continue"
            " training"
        },
    )
    parts: bool = field(
        default=False,
        metadata={"help": "Also save the captioner and the retriever of a pre-training checkpoint, in subfolders"},
    )
    head_width: int | None = field(
        default=None,
        metadata={
            "help": "Width of an attention head, which weights do not determine (default: that of the file, or 64 as in all"
            " released models; needed for other widths than theirs)"
        },
    )

    overwrite: bool = field(default=False, metadata={"help": "Replace an existing model folder or .pth file"})

    def __post_init__(self) -> None:
        wanted, other = ("output", "output_dir") if self.to_original else ("output_dir", "output")
        if self.target is not None:
            print(
                f"blip-hf convert: warning: name the target with --{wanted}; the form without it will be removed.",
                file=sys.stderr,
            )
            setattr(self, wanted, Path(self.target))
        if getattr(self, other) is not None:
            raise UsageError(
                f"--{other} does not go {'with' if self.to_original else 'without'} --to_original. Pass --{wanted}."
            )
        if getattr(self, wanted) is None:
            raise UsageError(f"--{wanted} {'FILE' if self.to_original else 'DIR'} missing.")
        given = [name for name in _READING_OPTIONS if getattr(self, name)]
        if self.to_original and given:
            raise UsageError(f"--{given[0]} applies to original checkpoints only. Leave it out with --to_original.")

    @property
    def written(self) -> Path:
        """The file or the folder to write."""
        written = self.output if self.to_original else self.output_dir
        assert written is not None  # `__post_init__` checks it
        return written


def _run(options: ConvertOptions) -> None:
    from transformers.utils import logging

    from ..conversion import convert_original_checkpoint, restore_original_checkpoint

    logging.disable_progress_bar()
    if options.overwrite and not options.to_original:
        _remove_model(options.written)
    if options.to_original:
        conversion = restore_original_checkpoint(options.source, options.written)
    else:
        given = {name: getattr(options, name) for name in ("tokenizer", "head_width") if getattr(options, name)}
        conversion = convert_original_checkpoint(
            options.source,
            options.written,
            keep_training_state=options.training_state,
            save_parts=options.parts,
            **given,
        )
    print(describe(conversion, options))


def _remove_model(folder: Path) -> None:
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} holds no config.json, so it is not a model to replace. Pass another --output_dir.")
    shutil.rmtree(folder)


def describe(conversion: "Conversion", options: ConvertOptions) -> str:
    """One line on the result, and a table of the tensors that were dropped."""
    head = (
        f"{options.source} -> {options.written}: {conversion.model_class} at {conversion.image_size} px,"
        f" {conversion.num_tensors} tensors"
    )
    return "\n".join([head, *_table(conversion.dropped)])


def _table(dropped: Mapping[str, str]) -> list[str]:
    """Rows of a name, a count and a reason; tensors of one part with one reason share a row."""
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
    """The common start of names, with stars, such as `text_encoder_m.encoder.layer.*.crossattention.*`."""
    shared = []
    for components in zip(*(re.sub(r"\.\d+\.", ".*.", name).split(".") for name in names), strict=False):
        if len(set(components)) > 1:
            break
        shared.append(components[0])
    return ".".join([*shared, "*"])


COMMAND = Command(
    prog="blip-hf convert",
    description="Converts a checkpoint of salesforce/BLIP or LAVIS, of any task, to a folder with a model and its processor,"
    " in --output_dir, or with --to_original such a folder to a .pth file, --output. Folders of transformers need no"
    " conversion.",
    options=ConvertOptions,
    run=_run,
)

__all__ = ["COMMAND", "ConvertOptions", "describe"]
