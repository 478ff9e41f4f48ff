# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf caption`: captions of an image, many, or a folder, as text, JSON lines or CSV."""

import argparse
import contextlib
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..checkpoints import require_checkpoint
from ..files import atomic_write


if TYPE_CHECKING:
    from ..captioner import BlipCaptioner, Caption

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def main(argv: Sequence[str] | None = None) -> int:
    """Writes captions.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments after the name of the command. Those of the process by default.

    Returns:
        `int`: 0, or 1 if none of the images could be read.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.top_p is not None and not arguments.sample:
        parser.error("--top_p is about sampling: add --sample, or leave it out")
    images = find_images(arguments.images, recursive=arguments.recursive)
    captioner = load_captioner(arguments)
    captions = captioner.iter_captions(
        images, num_return_sequences=arguments.num_captions, return_scores=arguments.scores, on_error="skip"
    )
    columns = ["image", "caption"]
    columns += ["log_probability", "num_tokens"] if arguments.scores else []
    columns += ["itm_probability"] if arguments.matcher else []
    failures: list[str] = []
    with open_output(arguments.output) as stream:
        # Captions that come up on the same terminal are progress enough.
        is_shown = len(images) > 1 and sys.stderr.isatty() and not stream.isatty()
        records = as_records(with_progress(captions, len(images), is_shown), images, failures)
        write_records(records, stream, columns=columns, output_format=arguments.format)
    if failures:
        print(f"blip-hf caption: skipped {len(failures)} of {len(images)} images", file=sys.stderr)
    return 1 if len(failures) == len(images) else 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command.

    Returns:
        `argparse.ArgumentParser`: its defaults of `None` leave the choice to the captioner and the checkpoint.
    """
    parser = argparse.ArgumentParser(
        prog="blip-hf caption",
        description="Writes captions for images. An image that cannot be read is skipped and named on stderr.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="folder or model id of a captioning model and its processor")
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="image, or folder of images")
    parser.add_argument("--recursive", action="store_true", help="look into folders within folders")

    writing = parser.add_argument_group("writing")
    writing.add_argument("--prompt", help="what each caption starts with; not repeated in the output")
    writing.add_argument("--num_captions", type=positive_int, default=1, help="captions an image (default: 1)")
    writing.add_argument("--max_new_tokens", type=positive_int, help="longest caption (default: 20)")
    writing.add_argument("--num_beams", type=positive_int, help="beams of the search (default: 3, sampling 1)")
    writing.add_argument("--sample", action="store_true", help="sample instead of searching for the most likely")
    writing.add_argument("--top_p", type=float, help="probability mass to sample from (default: 0.9)")
    writing.add_argument("--seed", type=int, help="repeat what was sampled with this seed")

    running = parser.add_argument_group("running")
    running.add_argument("--batch_size", type=positive_int, default=8, help="images at a time (default: 8)")
    running.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    running.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="number format (default: the checkpoint's)"
    )

    output = parser.add_argument_group("output")
    output.add_argument("--scores", action="store_true", help="add log-probability and number of tokens")
    output.add_argument("--matcher", metavar="MODEL", help="retrieval model, to add the probability of a match")
    output.add_argument(
        "--format", choices=["text", "jsonl", "csv"], default="text", help="text: fields between tabs (the default)"
    )
    output.add_argument(
        "--output", metavar="FILE", type=Path, help="file to write in place of stdout; it appears when all is done"
    )
    return parser


def positive_int(text: str) -> int:
    """Reads a number of things.

    Args:
        text (`str`):
            The argument.

    Returns:
        `int`: at least 1.

    Raises:
        argparse.ArgumentTypeError: If it is something else.
    """
    if not text.isascii() or not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def load_captioner(arguments: argparse.Namespace) -> "BlipCaptioner":
    """Loads the models that the arguments name, with the settings that they give.

    Args:
        arguments (`argparse.Namespace`):
            Of `build_parser`.

    Returns:
        `BlipCaptioner`: it knows the defaults of what was not given.

    Raises:
        ValueError: If a model is neither a folder nor a possible model id, or the device cannot be used.
    """
    for name in filter(None, (arguments.model, arguments.matcher)):
        require_checkpoint(name)

    import torch
    from transformers.utils import logging

    from ..captioner import BlipCaptioner

    try:
        torch.empty(0, device=arguments.device)
    except (RuntimeError, AssertionError) as error:
        # The rest of a CUDA message is advice about kernels.
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"--device {arguments.device} cannot be used: {reason}. Leave it out, or pass cpu."
        ) from error
    logging.disable_progress_bar()
    names = ("num_beams", "max_new_tokens", "top_p")
    settings = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.sample:
        settings["do_sample"] = True
    return BlipCaptioner.from_pretrained(
        arguments.model,
        matcher=arguments.matcher,
        device=arguments.device,
        dtype=arguments.dtype,
        prompt=arguments.prompt,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        **settings,
    )


def find_images(paths: Iterable[Path], *, recursive: bool) -> list[Path]:
    """Replaces each folder by the images in it, sorted by path.

    Args:
        paths (`Iterable[Path]`):
            Files, which are taken as they are, and folders.
        recursive (`bool`):
            Whether to look into folders within folders.

    Returns:
        `list[Path]`: files, in order.

    Raises:
        ValueError: If a folder holds no image.
    """
    images = []
    for path in paths:
        if not path.is_dir():
            images.append(path)
            continue
        entries = path.rglob("*") if recursive else path.iterdir()
        found = sorted(entry for entry in entries if entry.suffix.lower() in _SUFFIXES and entry.is_file())
        if not found:
            hint = "" if recursive else "; --recursive looks into its folders too"
            raise ValueError(f"{path} holds no image ({', '.join(sorted(_SUFFIXES))}){hint}.")
        images += found
    return images


def with_progress(captions: "Iterable[Caption]", num_images: int, is_shown: bool) -> "Iterator[Caption]":
    """Shows on stderr how many images are done.

    Args:
        captions (`Iterable[Caption]`):
            Captions, those of one image being neighbours.
        num_images (`int`):
            Number of images in all.
        is_shown (`bool`):
            Whether to show anything.

    Yields:
        `Caption`: the same.
    """
    from tqdm import tqdm

    with tqdm(total=num_images, unit="image", disable=not is_shown) as bar:
        for caption in captions:
            yield caption
            bar.update(caption.image_index + 1 - bar.n)


def as_records(captions: "Iterable[Caption]", images: Sequence[Path], failures: list[str]) -> Iterator[dict[str, Any]]:
    """Captions with the names of their images; names the broken images on stderr.

    Args:
        captions (`Iterable[Caption]`):
            What the captioner gives.
        images (`Sequence[Path]`):
            The images it was given.
        failures (`list[str]`):
            Gets the error of each image that could not be read.

    Yields:
        `dict[str, Any]`: one of each caption, with all that is known about it.
    """
    for caption in captions:
        if caption.error is not None:
            failures.append(caption.error)
            print(f"blip-hf caption: skipped: {caption.error}", file=sys.stderr)
            continue
        yield {
            "image": str(images[caption.image_index]),
            "caption": caption.text,
            "log_probability": caption.log_probability,
            "num_tokens": caption.num_tokens,
            "itm_probability": caption.itm_probability,
        }


def write_records(
    records: Iterable[dict[str, Any]], stream: TextIO, *, columns: Sequence[str], output_format: str
) -> None:
    """Writes records as they come.

    Args:
        records (`Iterable[dict[str, Any]]`):
            Records with at least these columns.
        stream (`TextIO`):
            Where to.
        columns (`Sequence[str]`):
            What to write of each.
        output_format (`str`):
            `"text"`: a line a record, with tabs; `"jsonl"`: an object a line; `"csv"`: with a head line.
    """
    table = csv.writer(stream, lineterminator="\n")
    if output_format == "csv":
        table.writerow(columns)
    for record in records:
        row = {column: record[column] for column in columns}
        if output_format == "csv":
            table.writerow(row.values())
        elif output_format == "jsonl":
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        else:
            fields = (f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values())
            stream.write("\t".join(fields) + "\n")
        stream.flush()


@contextlib.contextmanager
def open_output(path: Path | None) -> Iterator[TextIO]:
    """Opens a file that appears under its name only when it is complete; stdout without a path.

    Args:
        path (`Path`, *optional*):
            The file.

    Yields:
        `TextIO`: what to write to.
    """
    if path is None:
        yield sys.stdout
        return
    with atomic_write(path) as beside, beside.open("w", encoding="utf-8", newline="") as stream:
        yield stream


__all__ = ["build_parser", "find_images", "main"]
