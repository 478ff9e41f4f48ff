# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf caption`: captions of images from any source, in one file or in a text file for each image."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..caption_settings import caption_option
from .caption_engines import open_engine
from .caption_formats import Format, format_of
from .caption_outputs import CaptionFile, CaptionSidecars
from .caption_run import caption_to_files, caption_to_stdout
from .engine_options import check_engine, engine_option
from .errors import UsageError
from .image_options import ImageOptions
from .parser import Command
from .stop_signals import stop_signals


_ONLY_ONE_FILE = ("output", "scores", "matcher")
_ONLY_SIDECARS = ("output_dir", "append")


@dataclass(kw_only=True)
class CaptionOptions(ImageOptions):
    """What `blip-hf caption` takes."""

    prompt: str | None = caption_option("prompt")
    num_captions: int = field(default=1, metadata={"help": "Captions per image"})
    num_beams: int | None = caption_option("num_beams")
    max_length: int | None = caption_option("max_length")
    min_length: int | None = caption_option("min_length")
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Maximum number of tokens after the prompt, in place of --max_length"}
    )
    repetition_penalty: float | None = caption_option("repetition_penalty")
    no_repeat_ngram_size: int | None = field(
        default=None, metadata={"help": "Length of token sequences that may occur only once in a caption"}
    )
    sample: bool = field(default=False, metadata={"help": "Sample in place of beam search"})
    top_p: float | None = caption_option("top_p")
    seed: int | None = field(default=None, metadata={"help": "Seed that makes sampling repeatable"})
    dtype: Literal["float32", "bfloat16", "float16"] | None = field(  # type: ignore[assignment]  # may be unset
        default=None, metadata={"help": "Data type of the weights (default: the checkpoint's)"}
    )
    prefix: str = field(default="", metadata={"help": "Text to put before each caption, as it is"})
    suffix: str = field(default="", metadata={"help": "Text to put after each caption, as it is"})
    scores: bool = field(default=False, metadata={"help": "Add the log-probability and the number of tokens"})
    matcher: str | None = field(
        default=None, metadata={"help": "Retrieval model, to add the probability that image and caption match"}
    )
    format: Format | None = field(
        default=None,
        metadata={
            "help": "Format; text has tabs between columns, sidecar is a text file for each image (default: that of the"
            " suffix of --output, or text)"
        },
    )
    output: Path | None = field(
        default=None,
        metadata={
            "help": "File to write to; it appears when it is complete, and until then FILE.part has the captions"
            " (default: stdout)"
        },
    )
    output_dir: Path | None = field(
        default=None,
        metadata={"help": "With --format sidecar: folder for the text files (default: beside the images)"},
    )
    extension: str = field(default=".txt", metadata={"help": "With --format sidecar: extension of the text files"})
    append: bool = field(
        default=False, metadata={"help": "With --format sidecar: add captions to the existing texts, after a comma"}
    )
    skip_existing: bool = field(
        default=False, metadata={"help": "Keep the captions that --output has, and caption the other images"}
    )
    overwrite: bool = field(
        default=False,
        metadata={"help": "Replace existing captions, and start an interrupted run again instead of resuming it"},
    )
    engine: Literal["local", "ray"] = engine_option("engine")
    address: str | None = engine_option("address")
    num_actors: int | None = engine_option("num_actors")
    num_cpus: int | None = engine_option("num_cpus")
    num_gpus: float | None = engine_option("num_gpus")
    shard_size: int | None = field(
        default=None, metadata={"help": "Images of a task of Ray, rounded up to whole batches (default: 16 batches)"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_p is not None and not self.sample:
            raise UsageError("--top_p applies to sampling only. Add --sample, or leave it out.")
        for name in (
            "num_captions",
            "num_beams",
            "max_length",
            "max_new_tokens",
            "no_repeat_ngram_size",
            "shard_size",
        ):
            self.check_minimum(name, 1)
        check_engine(self, "shard_size")
        self.format = format_of(self.output, self.format)
        self._check_output()

    def _check_output(self) -> None:
        is_sidecar = self.format == "sidecar"
        misplaced = [name for name in (_ONLY_ONE_FILE if is_sidecar else _ONLY_SIDECARS) if getattr(self, name)]
        if misplaced:
            raise UsageError(
                f"--{misplaced[0]} does not go {'with' if is_sidecar else 'without'} --format sidecar, which writes a text"
                " file for each image. Leave one of them out."
            )
        if is_sidecar and self.num_captions > 1:
            raise UsageError("--format sidecar writes one caption for each image. Leave --num_captions out.")
        chosen = [name for name in ("skip_existing", "append", "overwrite") if getattr(self, name)]
        if len(chosen) > 1:
            raise UsageError(f"--{chosen[0]} and --{chosen[1]} contradict each other. Leave one of them out.")
        if self.skip_existing and self.output is None and not is_sidecar:
            raise UsageError("--skip_existing needs the file of the earlier captions. Pass it as --output.")

    @property
    def chosen_format(self) -> Format:
        """`format`, which is chosen from the suffix of `output` if it is not given."""
        return format_of(self.output, self.format)

    @property
    def writes_to_stdout(self) -> bool:
        """Whether captions appear as they come, and none is noted."""
        return self.output is None and self.format != "sidecar"

    def columns(self) -> list[str]:
        """Names of the columns to write."""
        columns = ["image", "caption"]
        columns += ["log_probability", "num_tokens"] if self.scores else []
        return [*columns, "itm_probability"] if self.matcher else columns


def _run(options: CaptionOptions) -> int:
    with stop_signals():
        images = options.find_images()
        if options.writes_to_stdout:
            with open_engine(options) as engine:
                return caption_to_stdout(engine, images, options)
        output = (CaptionSidecars if options.format == "sidecar" else CaptionFile)(options, images)
        with open_engine(options) as engine:
            return caption_to_files(engine, images, output, options)


COMMAND = Command(
    prog="blip-hf caption",
    description="Captions images. An image that cannot be read is skipped and named on stderr. The same command again"
    " resumes an interrupted run.",
    options=CaptionOptions,
    run=_run,
    resumes=True,
)

__all__ = ["COMMAND", "CaptionOptions"]
