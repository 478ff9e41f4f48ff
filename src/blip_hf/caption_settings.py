# SPDX-License-Identifier: BSD-3-Clause
"""Default prompt, lengths, beams and sampling of captions. Imports nothing heavy, so `--help` is fast."""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any


def _setting(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, kw_only=True)
class CaptionSettings:
    """The prompt of a captioner and its generation settings. The `help` of each field documents it.

    A checkpoint stores its settings as [`BlipProcessor.caption_settings`]; [`CaptionSettings.resolve`] combines them
    with explicit values. As in salesforce/BLIP, lengths count `[DEC]`, the prompt and the caption; `max_length` also
    counts the final `[SEP]`.
    """

    # salesforce/BLIP, configs/caption_coco.yaml
    prompt: str = _setting("a picture of ", "Text that each caption starts with; not part of the caption. '' for none")
    num_beams: int = _setting(3, "Number of beams; at least the number of captions per image")
    max_length: int = _setting(20, "Maximum number of tokens, including [DEC] and the prompt")
    min_length: int = _setting(5, "Minimum number of tokens, including [DEC] and the prompt")
    # BLIP, section 4: nucleus sampling of synthetic captions
    top_p: float = _setting(0.9, "Probability mass that nucleus sampling draws from")
    # salesforce/BLIP, models/blip.py: 1.0 for beam search, 1.1 for sampling
    repetition_penalty: float = _setting(1.0, "Values above 1 make repeated tokens less likely")

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise ValueError(f"prompt={self.prompt!r} is not a string. Pass '' for no prompt.")
        for name, minimum in (("num_beams", 1), ("min_length", 0)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name}={getattr(self, name)} is too small. Pass {minimum} or more.")
        if self.max_length < shortest_length(self.prompt):
            raise ValueError(
                f"max_length={self.max_length} leaves no room for a caption after the prompt {self.prompt!r}. Pass"
                f" {shortest_length(self.prompt)} or more."
            )
        if self.min_length > self.max_length:
            raise ValueError(
                f"min_length={self.min_length} is greater than max_length={self.max_length}. Pass {self.max_length} or"
                " less."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is not a probability mass. Pass a value in (0, 1].")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty={self.repetition_penalty} is not positive. Pass 1.0 for none.")

    @classmethod
    def resolve(cls, own: "CaptionSettings | None" = None, **given: Any) -> "CaptionSettings":
        """Combines explicit values, the settings of a checkpoint and the package defaults, in this order of precedence.

        `own` are the settings of the checkpoint, usually `processor.caption_settings`. Values of `None` are ignored. A
        given `max_length` below the `min_length` of `own` lowers the latter.

        Example:
            >>> own = CaptionSettings(prompt="a photo of ", max_length=30)
            >>> settings = CaptionSettings.resolve(own, prompt=None, max_length=15)
            >>> settings.prompt, settings.max_length, settings.num_beams
            ('a photo of ', 15, 3)
        """
        own = cls() if own is None else own
        chosen = {name: value for name, value in given.items() if value is not None}
        if "max_length" in chosen:
            chosen.setdefault("min_length", min(own.min_length, chosen["max_length"]))
        return replace(own, **chosen)

    @classmethod
    def for_finetuning(cls, own: "CaptionSettings | None" = None, **given: Any) -> "CaptionSettings":
        """Like `resolve`, but replaces the settings of pre-training, which has no prompt, by the defaults."""
        return cls.resolve(None if own == PRETRAINING_SETTINGS else own, **given)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CaptionSettings":
        """Reads the result of [`CaptionSettings.to_dict`]. Ignores unknown names."""
        return cls(**{item.name: values[item.name] for item in fields(cls) if item.name in values})

    def to_dict(self) -> dict[str, Any]:
        """Returns the values by field name, for JSON."""
        return asdict(self)


def caption_option(name: str) -> Any:
    """Dataclass field for an option that defaults to `None`, the checkpoint's own setting.

    Example:
        >>> @dataclass(kw_only=True)
        ... class Options:
        ...     num_beams: int | None = caption_option("num_beams")
        >>> fields(Options)[0].metadata["help"]
        'Number of beams; at least the number of captions per image (default: the value of the checkpoint)'
    """
    help_text = CaptionSettings.__dataclass_fields__[name].metadata["help"]
    return field(default=None, metadata={"help": f"{help_text} (default: the value of the checkpoint)"})


def shortest_length(prompt: str) -> int:
    """Lower bound of `max_length` with a prompt: `[DEC]`, one token per word of the prompt, and one.

    Example:
        >>> shortest_length("a picture of ")
        5
    """
    return 1 + len(prompt.split()) + 1


# Captions have no prompt in pre-training (salesforce/BLIP, models/blip_pretrain.py). Two tokens are [DEC] and a word.
PRETRAINING_SETTINGS = CaptionSettings(prompt="", min_length=2)

__all__ = ["PRETRAINING_SETTINGS", "CaptionSettings", "caption_option", "shortest_length"]
