# SPDX-License-Identifier: BSD-3-Clause
"""`/caption`: captions of images, with their scores."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from PIL import Image
from pydantic import Field, model_validator

from ..captioner import BlipCaptioner, Caption
from .models import ServedModels
from .operation import OperationRequest, OperationResponse, Text


_SAMPLING_ONLY = ("top_p", "top_k", "temperature", "seed")
_GENERATION = (
    "num_beams",
    "do_sample",
    "top_p",
    "top_k",
    "temperature",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "max_length",
    "min_length",
    "max_new_tokens",
)
# The released checkpoints have 512 positions. Smaller models check their own maximum.
_MAX_LENGTH = 512


@dataclass(frozen=True)
class _NoSharing:
    """Differs from every other one, so that a batch has the inputs of one request only."""

    identity: object = field(default_factory=object)


@dataclass(frozen=True)
class CaptionJob:
    """Captions images with equal settings."""

    prompt: str | None
    num_return_sequences: int
    return_scores: bool
    seed: int | None
    settings: tuple[tuple[str, Any], ...]
    own: _NoSharing | None
    """Of requests with a seed: the random numbers of an image depend on its batch."""

    name: ClassVar[str] = "caption"

    def run(self, models: ServedModels, inputs: Sequence[tuple[int, Image.Image]]) -> list[list[Caption]]:
        """Captions of each image; inputs are pairs of its index in the request and the image."""
        matcher = models.matcher if self.return_scores else None
        assert models.captioner is not None  # the endpoint answers 501 without it
        captioner = BlipCaptioner(
            models.captioner.model,
            models.captioner.processor,
            matcher=None if matcher is None else matcher.model,
            matcher_processor=None if matcher is None else matcher.processor,
            prompt=self.prompt,
            batch_size=len(inputs),
            seed=self.seed,
            **dict(self.settings),
        )
        captions = captioner.iter_captions(
            [image for _, image in inputs],
            num_return_sequences=self.num_return_sequences,
            return_scores=self.return_scores,
            first_index=inputs[0][0],  # the seed of a batch depends on it
        )
        return [[next(captions) for _ in range(self.num_return_sequences)] for _ in inputs]


class CaptionRequest(OperationRequest):
    """Settings of captions. Those that are left out are the checkpoint's."""

    head: ClassVar[str] = "captioner"

    prompt: Text | None = Field(
        None, description="Start of each caption, which is removed from the result; '' for none"
    )
    num_return_sequences: int = Field(1, ge=1, le=16, description="Captions per image")
    num_beams: int | None = Field(None, ge=1, le=16, description="Number of beams")
    do_sample: bool = Field(False, description="Sample in place of beam search")
    top_p: float | None = Field(None, gt=0, le=1, description="Probability mass that sampling draws from")
    top_k: int | None = Field(
        None, ge=0, description="Number of most probable tokens that sampling draws from; 0 for all"
    )
    temperature: float | None = Field(None, gt=0, le=100, description="Divisor of the logits in sampling")
    seed: int | None = Field(None, ge=0, lt=2**62, description="Makes sampling repeatable; the images share no batch")
    repetition_penalty: float | None = Field(
        None, gt=0, le=100, description="Above 1: repeated tokens are less likely"
    )
    no_repeat_ngram_size: int | None = Field(
        None, ge=1, description="Length of token sequences that may occur only once in a caption"
    )
    max_length: int | None = Field(
        None, ge=1, le=_MAX_LENGTH, description="Maximum number of tokens, including [DEC] and the prompt"
    )
    min_length: int | None = Field(
        None, ge=0, le=_MAX_LENGTH, description="Minimum number of tokens, including [DEC] and the prompt"
    )
    max_new_tokens: int | None = Field(
        None, ge=1, le=_MAX_LENGTH, description="Maximum number of tokens after the prompt, in place of max_length"
    )
    return_scores: bool = Field(
        False, description="Add the log-probability and, if the server has a matcher, the ITM probability"
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> "CaptionRequest":
        given = [name for name in _SAMPLING_ONLY if getattr(self, name) is not None]
        if given and not self.do_sample:
            raise ValueError(f"{' and '.join(given)} given without sampling. Add do_sample=true, or leave it out")
        if self.max_length is not None and self.max_new_tokens is not None:
            raise ValueError("max_length and max_new_tokens both limit the caption. Leave one of them out")
        if self.min_length is not None and self.max_length is not None and self.min_length > self.max_length:
            raise ValueError(f"min_length={self.min_length} is more than max_length={self.max_length}")
        num_beams = None if self.do_sample else self.num_beams
        if num_beams is not None and self.num_return_sequences > num_beams:
            raise ValueError(
                f"num_return_sequences={self.num_return_sequences} needs as many beams, got num_beams={self.num_beams}."
                " Raise num_beams, or add do_sample=true"
            )
        return self

    def jobs(self, images: Sequence[Image.Image]) -> list[tuple[CaptionJob, Any]]:
        """One input per image."""
        settings = {name: getattr(self, name) for name in _GENERATION}
        job = CaptionJob(
            prompt=self.prompt,
            num_return_sequences=self.num_return_sequences,
            return_scores=self.return_scores,
            seed=self.seed,
            settings=tuple((name, value) for name, value in settings.items() if value is not None),
            own=None if self.seed is None else _NoSharing(),
        )
        return [(job, (index, image)) for index, image in enumerate(images)]

    def response(self, results: Sequence[list[Any]]) -> "CaptionResponse":
        """The captions of all images."""
        return CaptionResponse(
            captions=[
                CaptionOfImage(
                    image_index=index,
                    text=caption.text,
                    log_probability=caption.log_probability,
                    num_tokens=caption.num_tokens,
                    itm_probability=caption.itm_probability,
                )
                for index, captions in enumerate(results)
                for caption in captions
            ]
        )


class CaptionOfImage(OperationResponse):
    """A caption, with the fields of `blip_hf.Caption`."""

    image_index: int = Field(description="Position of the image in the request, from 0")
    text: str = Field(description="The caption without the prompt")
    log_probability: float | None = Field(None, description="Log-probability, summed over the tokens")
    num_tokens: int | None = Field(None, description="Number of tokens in that sum")
    itm_probability: float | None = Field(None, description="Probability that image and caption match")


class CaptionResponse(OperationResponse):
    """Captions in the order of the images."""

    captions: list[CaptionOfImage]


__all__ = ["CaptionJob", "CaptionRequest", "CaptionResponse"]
