# SPDX-License-Identifier: BSD-3-Clause
"""How captions are written and pairs are scored. Imports nothing heavy, so that `--help` is quick."""

from dataclasses import dataclass, field
from typing import Literal


# What changes no more than the last digits of a score: a run may go on with another value.
FREE_SETTINGS = ("batch_size", "num_workers")


@dataclass(frozen=True, kw_only=True)
class CapFiltSettings:
    """Settings of a CapFilt run (paper, section 4: one caption an image, by nucleus sampling at 0.9).

    Each is documented by its `help`. Lengths count tokens as salesforce/BLIP does, `[DEC]` and the prompt included.

    Raises:
        ValueError: If a setting is out of its range.
    """

    num_captions: int = field(default=1, metadata={"help": "Synthetic captions an image; 0 for a filter alone."})
    strategy: Literal["nucleus", "beam", "greedy"] = field(
        default="nucleus", metadata={"help": "How they are written: nucleus (sampling), beam or greedy."}
    )
    top_p: float = field(default=0.9, metadata={"help": "Probability mass that nucleus sampling draws from."})
    num_beams: int = field(default=3, metadata={"help": "Beams; as many as captions where those are more."})
    prompt: str = field(default="a picture of ", metadata={"help": "What each caption starts with; not part of it."})
    max_length: int = field(default=20, metadata={"help": "Most tokens of a caption, the prompt's included."})
    min_length: int = field(default=5, metadata={"help": "Least tokens likewise."})
    repetition_penalty: float = field(
        default=1.0, metadata={"help": "Above 1 a word is less likely to come twice (salesforce/BLIP samples at 1.1)."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})
    batch_size: int = field(default=32, metadata={"help": "Images at a time."})
    num_workers: int = field(default=2, metadata={"help": "Threads that open images ahead; 0 for none."})

    def __post_init__(self) -> None:
        if self.strategy not in ("nucleus", "beam", "greedy"):
            raise ValueError(f"strategy={self.strategy!r} is unknown. Pass 'nucleus', 'beam' or 'greedy'.")
        for name, least in (("num_captions", 0), ("num_beams", 1), ("batch_size", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} is too small. Pass {least} or more.")
        if not isinstance(self.prompt, str):
            raise ValueError(f"prompt={self.prompt!r} is no text. Pass '' for none.")
        if self.max_length < least_length(self.prompt):
            raise ValueError(
                f"max_length={self.max_length} has no room for a caption behind the prompt {self.prompt!r}. Pass"
                f" {least_length(self.prompt)} or more."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is no share of the probability. Pass a value in (0, 1].")
        if self.strategy == "greedy" and self.num_captions > 1:
            raise ValueError(
                f"num_captions={self.num_captions}, but greedy search writes one. Pass strategy='nucleus' or 'beam'."
            )


def least_length(prompt: str) -> int:
    """Tokens of the shortest caption, as far as that can be told without a vocabulary.

    Args:
        prompt (`str`):
            What it starts with.

    Returns:
        `int`: `[DEC]`, at least one for each word of the prompt, and one more.

    Example:
        >>> least_length("a picture of ")
        5
    """
    return 1 + len(prompt.split()) + 1


__all__ = ["FREE_SETTINGS", "CapFiltSettings", "least_length"]
