# SPDX-License-Identifier: BSD-3-Clause
"""Options that commands on images share."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tasks.base import ALLOW_OUTSIDE_HELP, DType
from .errors import UsageError
from .output import open_output
from .skipped import Failure, report_skipped
from .tables import TableFormat, write_table


if TYPE_CHECKING:
    from .image_sources import FoundImages


@dataclass(kw_only=True)
class ImageOptions:
    """A model, its images, and how they are read."""

    model: str = field(
        metadata={"help": "Folder or model id of the model and its processor", "positional": True, "metavar": "MODEL"}
    )
    images: list[str] = field(
        metadata={
            "help": "Image, folder of images, list, Parquet, tar or data set",
            "positional": True,
            "metavar": "IMAGE",
        }
    )
    recursive: bool = field(default=False, metadata={"help": "Also take the images in subfolders"})
    follow_links: bool = field(default=False, metadata={"help": "With --recursive, also enter linked folders"})
    image_root: str | None = field(default=None, metadata={"help": "Folder that relative image paths start from"})
    allow_outside: bool = field(default=False, metadata={"help": ALLOW_OUTSIDE_HELP})
    split: str = field(default="train", metadata={"help": "Split of a data set that has several"})
    batch_size: int = field(default=8, metadata={"help": "Images per batch"})
    workers: int = field(
        default=2,
        metadata={"help": "Threads that read images ahead of the model; 0 for none", "aliases": ["num_workers"]},
    )
    device: str | None = field(
        default=None, metadata={"help": "Device, such as cpu or cuda:1 (default: an accelerator, if there is one)"}
    )
    dtype: DType = field(default="float32", metadata={"help": "Data type of the weights"})

    def __post_init__(self) -> None:
        self.check_minimum("batch_size", 1)
        self.check_minimum("workers", 0)

    def check_minimum(self, name: str, minimum: int) -> None:
        """Raises if an option is given and too small."""
        value = getattr(self, name)
        if value is not None and value < minimum:
            raise UsageError(f"--{name} is {value}, expected {minimum} or more.")

    def load(self, model_class: type) -> tuple[Any, Any]:
        """The model and its processor, on the device of the options."""
        from transformers.utils import logging

        from ..tasks.base import load_for_evaluation

        logging.disable_progress_bar()
        return load_for_evaluation(model_class, self)

    def find_images(self) -> "FoundImages":
        """The images."""
        from .image_sources import find_images

        return find_images(
            self.images,
            recursive=self.recursive,
            follow_links=self.follow_links,
            image_root=self.image_root,
            allow_outside=self.allow_outside,
            split=self.split,
        )


@dataclass(kw_only=True)
class TableOptions(ImageOptions):
    """Images, and the format of a table of results."""

    format: TableFormat = field(default="table", metadata={"help": "Format of the results"})
    output: Path | None = field(default=None, metadata={"help": "File to write to (default: stdout)"})

    def write_results(
        self, prog: str, rows: Sequence[Mapping[str, Any]], failures: Sequence[Failure], names: Sequence[str]
    ) -> int:
        """Writes the rows, and names images that could not be read on stderr. Returns the exit status."""
        with open_output(self.output) as stream:
            write_table(rows, stream, self.format)
        return report_skipped(prog, failures, names)


def is_path(word: str) -> bool:
    """Whether a word of the command line is a path: it exists, or it ends as an image or a folder does."""
    from .image_sources import is_image

    return os.path.exists(word) or word.endswith(("/", os.sep)) or is_image(word)


__all__ = ["ImageOptions", "TableOptions", "is_path"]
