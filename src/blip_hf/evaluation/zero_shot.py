# SPDX-License-Identifier: BSD-3-Clause
"""Zero-shot classification: which label, put into words, is nearest to an image."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from ..data.text import pre_caption
from ..image_utils import ImageSource
from ..modeling.retrieval import BlipForImageTextRetrieval
from ..processing_blip import BlipProcessor
from .features import image_features, text_features


DEFAULT_TEMPLATES = ("a photo of a {}", "a picture of a {}", "there is a {}")

# What BLIP's temperature starts from; checkpoints of the retrieval class do not keep the learnt one.
DEFAULT_TEMPERATURE = 0.07


@dataclass(frozen=True)
class LabelProbability:
    """A label of an image.

    Args:
        label (`str`):
            The label.
        probability (`float`):
            Its probability among the labels that were offered.
    """

    label: str
    probability: float


def build_label_features(
    model: BlipForImageTextRetrieval,
    processor: BlipProcessor,
    labels: Sequence[str],
    *,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    batch_size: int = 256,
) -> Tensor:
    """One unit vector a label: the mean over templates of the features of the texts, normalised again.

    Args:
        model (`BlipForImageTextRetrieval`):
            The model; its mode is left as it is.
        processor (`BlipProcessor`):
            The processor it was trained with.
        labels (sequence of `str`):
            At least one, each another.
        templates (sequence of `str`, *optional*, defaults to three):
            What labels are put in, in place of `{}`. `("{}",)` takes labels as they are. The texts go through
            [`~blip_hf.data.text.pre_caption`].
        batch_size (`int`, *optional*, defaults to 256):
            Texts a batch.

    Returns:
        `torch.Tensor` of shape `(labels, d)`: fp32, on the model's device.

    Raises:
        ValueError: If there is no label, one twice, no template, or one without `{}`.
    """
    if not labels or len(set(labels)) != len(labels):
        raise ValueError(
            f"Got {len(labels)} labels, {len(set(labels))} of them different; pass at least one, each once."
        )
    if not templates or any("{}" not in template for template in templates):
        raise ValueError(f"Templates are {list(templates)}; pass at least one, each with {{}} where the label goes.")
    texts = [pre_caption(template.replace("{}", label)) for label in labels for template in templates]
    features = text_features(model, processor, texts, batch_size=batch_size)
    return normalize(features.unflatten(0, (len(labels), -1)).mean(dim=1), dim=-1)  # (labels * templates, d)


def classify(features: Tensor, label_features: Tensor, *, temperature: float = DEFAULT_TEMPERATURE) -> Tensor:
    """Probabilities of labels: the softmax of cosines divided by a temperature, which changes no order.

    Args:
        features (`torch.Tensor` of shape `(n, d)`):
            Unit vectors of images, from [`~blip_hf.evaluation.features.image_features`].
        label_features (`torch.Tensor` of shape `(labels, d)`):
            From `build_label_features`.
        temperature (`float`, *optional*, defaults to 0.07):
            The divisor, above 0. Best is the `temp` that the model was pre-trained to.

    Returns:
        `torch.Tensor` of shape `(n, labels)`: rows that sum to one.

    Raises:
        ValueError: If the temperature is not above 0.

    Example:
        >>> import torch
        >>> classify(torch.eye(2)[:1], torch.eye(2), temperature=1.0)  # e / (e + 1)
        tensor([[0.7311, 0.2689]])
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} is not above 0. Pass BLIP's 0.07, or the one of pre-training.")
    return (features @ label_features.T / temperature).softmax(dim=-1)


class ZeroShotClassifier:
    """Tells which of its labels images show. The labels are encoded once.

    Args:
        model (`BlipForImageTextRetrieval`):
            The model; its mode is left as it is.
        processor (`BlipProcessor`):
            The processor it was trained with.
        labels (sequence of `str`):
            What there is to choose from.
        templates (sequence of `str`, *optional*, defaults to three):
            As in `build_label_features`.
        temperature (`float`, *optional*, defaults to 0.07):
            As in `classify`.

    Raises:
        ValueError: As `build_label_features` and `classify` do.

    Example:
        >>> classifier = ZeroShotClassifier(model, processor, ["dog", "cat"])  # doctest: +SKIP
        >>> classifier(["rex.jpg"], top_k=1)  # doctest: +SKIP
        [[LabelProbability(label='dog', probability=0.98)]]
    """

    def __init__(
        self,
        model: BlipForImageTextRetrieval,
        processor: BlipProcessor,
        labels: Sequence[str],
        *,
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        temperature: float = DEFAULT_TEMPERATURE,
    ) -> None:
        self.model = model
        self.processor = processor
        self.labels = list(labels)
        self.temperature = temperature
        self.label_features = build_label_features(model, processor, self.labels, templates=templates)

    def __call__(
        self, images: Sequence[ImageSource], *, top_k: int = 5, batch_size: int = 32
    ) -> list[list[LabelProbability]]:
        """The most probable labels of images.

        Args:
            images (sequence of `ImageSource`):
                In any form that [`~blip_hf.image_utils.open_image`] takes.
            top_k (`int`, *optional*, defaults to 5):
                How many labels an image; all where there are fewer.
            batch_size (`int`, *optional*, defaults to 32):
                Images a batch.

        Returns:
            `list[list[LabelProbability]]`: labels of each image, the most probable first.

        Raises:
            UnreadableImageError: If an image cannot be read.
        """
        features = image_features(self.model, self.processor, images, batch_size=batch_size)
        probabilities = classify(features, self.label_features, temperature=self.temperature)  # (n, labels)
        best = probabilities.topk(min(top_k, len(self.labels)), dim=1)
        return [
            [LabelProbability(self.labels[index], value) for index, value in zip(indices, values, strict=True)]
            for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


__all__ = [
    "DEFAULT_TEMPERATURE",
    "DEFAULT_TEMPLATES",
    "LabelProbability",
    "ZeroShotClassifier",
    "build_label_features",
    "classify",
]
