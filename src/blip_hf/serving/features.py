# SPDX-License-Identifier: BSD-3-Clause
"""`/features`: projected, L2-normalised features of images and texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

from PIL import Image
from pydantic import Field

from ..data.text import pre_caption
from ..evaluation.features import image_features, text_features
from .batcher import Job
from .models import ServedModels
from .operation import OperationRequest, OperationResponse, Text, check_texts


@dataclass(frozen=True)
class ImageFeaturesJob:
    """Computes the features of images."""

    name: ClassVar[str] = "image_features"

    def run(self, models: ServedModels, inputs: Sequence[Image.Image]) -> list[list[float]]:
        """One vector per image."""
        matcher = models.matcher
        assert matcher is not None  # the endpoint answers 501 without it
        return image_features(matcher.model, matcher.processor, inputs, batch_size=len(inputs)).tolist()


@dataclass(frozen=True)
class TextFeaturesJob:
    """Computes the features of texts, normalised as in training."""

    name: ClassVar[str] = "text_features"

    def run(self, models: ServedModels, inputs: Sequence[tuple[str, ...]]) -> list[list[list[float]]]:
        """The vectors of each request; an input is all its texts."""
        matcher = models.matcher
        assert matcher is not None  # the endpoint answers 501 without it
        texts = [pre_caption(text) for text in chain.from_iterable(inputs)]
        vectors = iter(text_features(matcher.model, matcher.processor, texts).tolist())
        return [[next(vectors) for _ in own] for own in inputs]


class FeaturesRequest(OperationRequest):
    """Texts and images to encode; either may be absent."""

    head: ClassVar[str] = "matcher"
    needs_images: ClassVar[bool] = False

    texts: list[Text] = Field([], description="Texts to encode")

    def check(self) -> None:
        """Raises if a text has no words."""
        check_texts(self.texts)

    def jobs(self, images: Sequence[Image.Image]) -> list[tuple[Job, Any]]:
        """One input per image, and one for all texts."""
        jobs: list[tuple[Job, Any]] = [(ImageFeaturesJob(), image) for image in images]
        if self.texts:
            jobs.append((TextFeaturesJob(), tuple(self.texts)))
        return jobs

    def response(self, results: Sequence[Any]) -> "FeaturesResponse":
        """The features of all images and texts."""
        *images, texts = results if self.texts else [*results, []]
        return FeaturesResponse(image_features=images, text_features=texts)


class FeaturesResponse(OperationResponse):
    """Unit vectors. The dot product of an image and a text is their `itc_similarity`."""

    image_features: list[list[float]]
    text_features: list[list[float]]


__all__ = ["FeaturesRequest", "FeaturesResponse", "ImageFeaturesJob", "TextFeaturesJob"]
