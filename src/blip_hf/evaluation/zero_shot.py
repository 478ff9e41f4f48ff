# SPDX-License-Identifier: BSD-3-Clause
"""Zero-shot classification of images by the similarity of their features and those of label texts."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from ..data.text import pre_caption
from ..image_utils import ImageSource
from ..modeling.retrieval import BlipForImageTextRetrieval
from ..processing_blip import BlipProcessor
from .defaults import BATCH_SIZE
from .features import image_features, text_features


DEFAULT_TEMPLATES = ("a photo of a {}", "a picture of a {}", "there is a {}")

# Initial temperature of BLIP. Checkpoints of the retrieval class do not contain the learnt one.
DEFAULT_TEMPERATURE = 0.07


@dataclass(frozen=True)
class LabelProbability:
    """A label and its probability among the labels of the classifier."""

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
    """Returns one unit vector per label, `(labels, d)`, fp32: the normalised mean of its text features over the templates.

    Each template is normalised by [`~blip_hf.data.text.pre_caption`] after the label replaces its `{}`.

    Raises:
        ValueError: If there are no labels or a label occurs twice, or there are no templates or one has no `{}`.
    """
    if not labels or len(set(labels)) != len(labels):
        raise ValueError(
            f"Got {len(labels)} labels, {len(set(labels))} of them different. Pass at least one, without duplicates."
        )
    if not templates or any("{}" not in template for template in templates):
        raise ValueError(f"Templates are {list(templates)}. Pass at least one, each with {{}} where the label goes.")
    texts = [pre_caption(template.replace("{}", label)) for label in labels for template in templates]
    features = text_features(model, processor, texts, batch_size=batch_size)
    return normalize(features.unflatten(0, (len(labels), -1)).mean(dim=1), dim=-1)  # (labels * templates, d)


def classify(features: Tensor, label_features: Tensor, *, temperature: float = DEFAULT_TEMPERATURE) -> Tensor:
    """Returns label probabilities `(n, labels)`: the softmax of the cosine similarities divided by a temperature.

    `features` `(n, d)` come from [`~blip_hf.evaluation.features.image_features`], `label_features` from
    `build_label_features`. The temperature does not change the order; the learnt `temp` of pre-training calibrates best.

    Raises:
        ValueError: If the temperature is not positive.

    Example:
        >>> import torch
        >>> classify(torch.eye(2)[:1], torch.eye(2), temperature=1.0)  # e / (e + 1)
        tensor([[0.7311, 0.2689]])
    """
    if not temperature > 0:
        raise ValueError(
            f"temperature={temperature} is not positive. Pass 0.07 (BLIP's initial value), or the one learnt in pre-training."
        )
    return (features @ label_features.T / temperature).softmax(dim=-1)


class ZeroShotClassifier:
    """Classifies images into the given labels. The labels are encoded once.

    Args:
        model (`BlipForImageTextRetrieval`):
            The model; its mode is kept.
        processor (`BlipProcessor`):
            The processor it was trained with.
        labels (sequence of `str`):
            At least one label, without duplicates.
        templates (sequence of `str`, *optional*, defaults to three):
            Texts with `{}` in place of the label. `("{}",)` uses the labels alone.
        temperature (`float`, *optional*, defaults to 0.07):
            Divisor of the cosine similarities.

    Raises:
        ValueError: If labels, templates or temperature cannot be used.

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
        self, images: Sequence[ImageSource], *, top_k: int = 5, batch_size: int = BATCH_SIZE
    ) -> list[list[LabelProbability]]:
        """Returns the `top_k` most probable labels of each image, best first.

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
