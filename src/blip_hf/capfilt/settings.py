# SPDX-License-Identifier: BSD-3-Clause
"""Settings of a CapFilt run. Imports nothing heavy, so that `--help` is quick."""

import sys
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from ..caption_settings import CaptionSettings, caption_option


# These change only the last digits of a score, so a run may resume with other values.
FREE_SETTINGS = ("batch_size", "num_workers")

# Values that are compatible with every prompt and length
_UNCONSTRAINED = {"prompt": "", "min_length": 0, "max_length": sys.maxsize}


@dataclass(frozen=True, kw_only=True)
class CapFiltSettings:
    """Settings of a CapFilt run. Each field is documented by its `help`.

    The defaults are those of the paper (section 4): one caption per image, by nucleus sampling. A field that is `None`
    stands for the setting that the captioner was trained with, see [`~blip_hf.CaptionSettings`].

    Raises:
        ValueError: If a value is out of its range.
    """

    num_captions: int = field(default=1, metadata={"help": "Synthetic captions per image; 0 to filter web texts only"})
    strategy: Literal["nucleus", "beam", "greedy"] = field(
        default="nucleus", metadata={"help": "Decoding: nucleus (sampling), beam or greedy"}
    )
    top_p: float | None = caption_option("top_p")
    num_beams: int | None = caption_option("num_beams")
    prompt: str | None = caption_option("prompt")
    max_length: int | None = caption_option("max_length")
    min_length: int | None = caption_option("min_length")
    repetition_penalty: float | None = caption_option("repetition_penalty")
    seed: int = field(default=0, metadata={"help": "Seed of the sampling"})
    batch_size: int = field(default=32, metadata={"help": "Images per batch"})
    num_workers: int = field(
        default=2, metadata={"help": "Threads that read images ahead; 0 for none", "aliases": ["workers"]}
    )

    def __post_init__(self) -> None:
        if self.strategy not in ("nucleus", "beam", "greedy"):
            raise ValueError(f"strategy={self.strategy!r} is unknown. Pass 'nucleus', 'beam' or 'greedy'.")
        for name, minimum in (("num_captions", 0), ("batch_size", 1), ("num_workers", 0)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name}={getattr(self, name)} is too small. Pass {minimum} or more.")
        if self.strategy == "greedy" and self.num_captions > 1:
            raise ValueError(
                f"num_captions={self.num_captions}, but greedy search writes one caption. Pass strategy='nucleus' or"
                " 'beam'."
            )
        given: dict[str, Any] = {name: value for name, value in self._caption_options().items() if value is not None}
        CaptionSettings(**{**_UNCONSTRAINED, **given})  # raises for values out of range

    def resolve(self, own: CaptionSettings | None) -> "CapFiltSettings":
        """Replaces each `None` by the setting of the captioner.

        Args:
            own (`CaptionSettings`, *optional*):
                Settings of the captioner: `processor.caption_settings`.
        """
        return replace(self, **CaptionSettings.resolve(own, **self._caption_options()).to_dict())

    def _caption_options(self) -> dict[str, object]:
        return {item.name: getattr(self, item.name) for item in fields(CaptionSettings)}


__all__ = ["FREE_SETTINGS", "CapFiltSettings"]
