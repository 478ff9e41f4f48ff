# SPDX-License-Identifier: BSD-3-Clause
"""`/match`: ITM probability and ITC similarity of images and texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, ClassVar

from PIL import Image
from pydantic import Field

from ..evaluation.matching import Match, match_texts
from .models import ServedModels
from .operation import OperationRequest, OperationResponse, Text, check_texts


@dataclass(frozen=True)
class MatchJob:
    """Compares each image with its own texts."""

    name: ClassVar[str] = "match"

    def run(self, models: ServedModels, inputs: Sequence[tuple[Image.Image, tuple[str, ...]]]) -> list[list[Match]]:
        """Scores of each image; inputs are pairs of an image and its texts."""
        images, texts = zip(*inputs, strict=True)
        matcher = models.matcher
        assert matcher is not None  # the endpoint answers 501 without it
        matches = match_texts(matcher.model, matcher.processor, images, texts, batch_size=len(images), pairwise=True)
        return [list(own) for _, own in groupby(matches, key=attrgetter("image_index"))]


class MatchRequest(OperationRequest):
    """The texts to compare with each image of the request."""

    head: ClassVar[str] = "matcher"

    texts: list[Text] = Field(min_length=1, description="Texts to compare with each image")

    def check(self) -> None:
        """Raises if a text has no words."""
        check_texts(self.texts)

    def jobs(self, images: Sequence[Image.Image]) -> list[tuple[MatchJob, Any]]:
        """One input per image."""
        return [(MatchJob(), (image, tuple(self.texts))) for image in images]

    def response(self, results: Sequence[list[Any]]) -> "MatchResponse":
        """The scores of all pairs."""
        return MatchResponse(
            matches=[
                MatchOfPair(
                    image_index=index,
                    text=match.text,
                    itm_probability=match.itm_probability,
                    itc_similarity=match.itc_similarity,
                )
                for index, matches in enumerate(results)
                for match in matches
            ]
        )


class MatchOfPair(OperationResponse):
    """The scores of an image and a text, with the fields of `blip_hf.Match`."""

    image_index: int = Field(description="Position of the image in the request, from 0")
    text: str
    itm_probability: float = Field(description="Probability that image and text match, from the ITM head")
    itc_similarity: float = Field(description="Cosine of the features of image and text")


class MatchResponse(OperationResponse):
    """Scores in the order of images, then texts."""

    matches: list[MatchOfPair]


__all__ = ["MatchJob", "MatchRequest", "MatchResponse"]
