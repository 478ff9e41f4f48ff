# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf caption`: captions of images from any source, as text, JSON lines, JSON or CSV."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..caption_settings import caption_option
from ..checkpoints import require_checkpoint
from .caption_formats import Format, format_of, write_records
from .caption_sources import find_images
from .errors import UsageError
from .output import open_output
from .parser import Command


if TYPE_CHECKING:
    from ..captioner import BlipCaptioner, Caption

_GENERATION_OPTIONS = (
    "num_beams",
    "max_length",
    "min_length",
    "max_new_tokens",
    "repetition_penalty",
    "top_p",
)


@dataclass(kw_only=True)
class CaptionOptions:
    """What `blip-hf caption` takes."""

    model: str = field(
        metadata={
            "help": "Folder or model id of a captioning model and its processor",
            "positional": True,
            "metavar": "MODEL",
        }
    )
    images: list[str] = field(
        metadata={
            "help": "Image, folder of images, list, Parquet, tar or data set",
            "positional": True,
            "metavar": "IMAGE",
        }
    )
    recursive: bool = field(default=False, metadata={"help": "Also take the images in subfolders"})
    image_root: str | None = field(default=None, metadata={"help": "Folder that relative image paths start from"})
    split: str = field(default="train", metadata={"help": "Split of a data set that has several"})
    prompt: str | None = caption_option("prompt")
    num_captions: int = field(default=1, metadata={"help": "Captions per image"})
    num_beams: int | None = caption_option("num_beams")
    max_length: int | None = caption_option("max_length")
    min_length: int | None = caption_option("min_length")
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Maximum number of tokens after the prompt, in place of --max_length"}
    )
    repetition_penalty: float | None = caption_option("repetition_penalty")
    sample: bool = field(default=False, metadata={"help": "Sample in place of beam search"})
    top_p: float | None = caption_option("top_p")
    seed: int | None = field(default=None, metadata={"help": "Seed that makes sampling repeatable"})
    batch_size: int = field(default=8, metadata={"help": "Images per batch"})
    device: str | None = field(
        default=None, metadata={"help": "Device, such as cpu or cuda:1 (default: a GPU if there is one)"}
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = field(
        default=None, metadata={"help": "Data type of the weights (default: the checkpoint's)"}
    )
    scores: bool = field(default=False, metadata={"help": "Add the log-probability and the number of tokens"})
    matcher: str | None = field(
        default=None, metadata={"help": "Retrieval model, to add the probability that image and caption match"}
    )
    format: Format | None = field(
        default=None,
        metadata={"help": "Format; text has tabs between columns (default: that of the suffix of --output, or text)"},
    )
    output: Path | None = field(
        default=None, metadata={"help": "File to write to; it appears when it is complete (default: stdout)"}
    )

    def __post_init__(self) -> None:
        if self.top_p is not None and not self.sample:
            raise UsageError("--top_p applies to sampling only. Add --sample, or leave it out.")
        for name in ("num_captions", "num_beams", "max_length", "max_new_tokens", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} is {value}, expected 1 or more.")
        self.format = format_of(self.output, self.format)

    def columns(self) -> list[str]:
        """Names of the columns to write."""
        columns = ["image", "caption"]
        columns += ["log_probability", "num_tokens"] if self.scores else []
        return [*columns, "itm_probability"] if self.matcher else columns


def _run(options: CaptionOptions) -> int:
    images = find_images(
        options.images, recursive=options.recursive, image_root=options.image_root, split=options.split
    )
    captions = load_captioner(options).iter_captions(
        images, num_return_sequences=options.num_captions, return_scores=options.scores, on_error="skip"
    )
    failures: list[str] = []
    with open_output(options.output) as stream:
        # Captions that appear on the same terminal show the progress themselves.
        is_shown = len(images) > 1 and sys.stderr.isatty() and not stream.isatty()
        records = as_records(with_progress(captions, len(images), is_shown), images.names, failures)
        write_records(records, stream, columns=options.columns(), output_format=options.format)
    if failures:
        print(f"blip-hf caption: skipped {len(failures)} of {len(images)} images", file=sys.stderr)
    return 1 if len(failures) == len(images) else 0


def load_captioner(options: CaptionOptions) -> "BlipCaptioner":
    """The models that the options name. Options that are `None` are left to the checkpoint."""
    for name in filter(None, (options.model, options.matcher)):
        require_checkpoint(name)

    from transformers.utils import logging

    from ..captioner import BlipCaptioner

    logging.disable_progress_bar()
    given = {name: getattr(options, name) for name in _GENERATION_OPTIONS if getattr(options, name) is not None}
    if options.sample:
        given["do_sample"] = True
    return BlipCaptioner.from_pretrained(
        options.model,
        matcher=options.matcher,
        device=options.device,
        dtype=options.dtype,
        prompt=options.prompt,
        batch_size=options.batch_size,
        seed=options.seed,
        **given,
    )


def with_progress(captions: "Iterable[Caption]", num_images: int, is_shown: bool) -> "Iterator[Caption]":
    """The same captions, with a progress bar over images on stderr."""
    from tqdm import tqdm

    with tqdm(total=num_images, unit="image", disable=not is_shown) as bar:
        for caption in captions:
            yield caption
            bar.update(caption.image_index + 1 - bar.n)


def as_records(captions: "Iterable[Caption]", names: Sequence[str], failures: list[str]) -> Iterator[dict[str, Any]]:
    """Records of captions with the names of their images. Images that fail are named on stderr and in `failures`."""
    for caption in captions:
        if caption.error is not None:
            failures.append(caption.error)
            print(f"blip-hf caption: skipped: {caption.error}", file=sys.stderr)
            continue
        yield {
            "image": names[caption.image_index],
            "caption": caption.text,
            "log_probability": caption.log_probability,
            "num_tokens": caption.num_tokens,
            "itm_probability": caption.itm_probability,
        }


COMMAND = Command(
    prog="blip-hf caption",
    description="Captions images. An image that cannot be read is skipped and named on stderr.",
    options=CaptionOptions,
    run=_run,
)

__all__ = ["COMMAND", "CaptionOptions"]
