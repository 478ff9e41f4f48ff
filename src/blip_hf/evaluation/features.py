# SPDX-License-Identifier: BSD-3-Clause
"""Features of many images and texts: in batches, texts by length, whatever mode the model is in.

Batches change nothing but speed and memory: a row's features are those that it has alone, up to rounding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..image_utils import ImageSource, open_image
from ..modeling.retrieval import BlipForImageTextRetrieval
from ..processing_blip import BlipProcessor


@dataclass(frozen=True)
class TokenizedTexts:
    """Rows of many texts, from which batches are cut that are no longer than they need to be.

    Args:
        input_ids (`torch.Tensor` of shape `(m, t)`):
            Token ids, [CLS] first, padded on the right.
        lengths (`torch.Tensor` of shape `(m,)`):
            Number of tokens of each, without padding. On the CPU, where batches are planned.
    """

    input_ids: Tensor
    lengths: Tensor

    @classmethod
    def from_texts(cls, processor: BlipProcessor, texts: Sequence[str], device: torch.device) -> "TokenizedTexts":
        """Tokenizes at least one text, with 35 tokens at most, as BLIP's retrieval has it."""
        rows = processor(text=list(texts), role="contrast", return_tensors="pt")
        return cls(rows["input_ids"].to(device), rows["attention_mask"].sum(dim=1))

    def by_length(self, index: Tensor, batch_size: int) -> Iterator[Tensor]:
        """Positions within `index` of shape `(r,)`, the shortest text first, in batches."""
        return iter(self.lengths[index].argsort(stable=True).split(batch_size))

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and mask, `(b, longest)` each, of the texts that `index` of shape `(b,)` names."""
        lengths = self.lengths[index]
        device, longest = self.input_ids.device, int(lengths.max())
        mask = torch.arange(longest) < lengths[:, None]  # (b, longest)
        return self.input_ids[index.to(device), :longest], mask.long().to(device)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients within; the model's own mode again after."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def image_features(
    model: BlipForImageTextRetrieval,
    processor: BlipProcessor,
    images: Sequence[ImageSource],
    *,
    batch_size: int = 32,
) -> Tensor:
    """Unit vectors of images, to be compared with those of texts by dot product.

    Args:
        model (`BlipForImageTextRetrieval`):
            The model; its mode is left as it is.
        processor (`BlipProcessor`):
            The processor it was trained with.
        images (sequence of `ImageSource`):
            At least one, in any form that [`~blip_hf.image_utils.open_image`] takes.
        batch_size (`int`, *optional*, defaults to 32):
            Images a batch.

    Returns:
        `torch.Tensor` of shape `(n, d)`: fp32, on the model's device.

    Raises:
        UnreadableImageError: If an image cannot be read.
    """
    with evaluating(model):
        batches = [
            model.get_image_features(
                read_pixels(processor, images[start : start + batch_size]).to(model.device, model.dtype)
            )
            for start in range(0, len(images), batch_size)
        ]
    return torch.cat(batches)


def text_features(
    model: BlipForImageTextRetrieval, processor: BlipProcessor, texts: Sequence[str], *, batch_size: int = 256
) -> Tensor:
    """Unit vectors of texts, to be compared with those of images by dot product.

    Args:
        model (`BlipForImageTextRetrieval`):
            The model; its mode is left as it is.
        processor (`BlipProcessor`):
            The processor it was trained with.
        texts (sequence of `str`):
            At least one. BLIP has read captions in the form of [`~blip_hf.data.text.pre_caption`].
        batch_size (`int`, *optional*, defaults to 256):
            Texts a batch.

    Returns:
        `torch.Tensor` of shape `(m, d)`: fp32, on the model's device.
    """
    rows = TokenizedTexts.from_texts(processor, texts, model.device)
    with evaluating(model):
        return encode_texts(model, rows, torch.arange(len(texts)), batch_size)


def encode_texts(model: BlipForImageTextRetrieval, rows: TokenizedTexts, index: Tensor, batch_size: int) -> Tensor:
    """Features of shape `(r, d)` of the texts that `index` of shape `(r,)` names."""
    width = model.config.image_text_hidden_size
    features = torch.empty(len(index), width, device=model.device, dtype=torch.float32)
    for position in rows.by_length(index, batch_size):
        features[position.to(model.device)] = model.get_text_features(*rows.batch(index[position]))
    return features


def multimodal_embeds(
    model: BlipForImageTextRetrieval,
    processor: BlipProcessor,
    images: Sequence[ImageSource],
    texts: Sequence[str],
    *,
    batch_size: int = 32,
) -> Tensor:
    """One vector a pair of image and text: what the image-grounded encoder makes of [ENC], and the matching head reads.

    It is neither projected nor normalised; no training objective compares two of them.

    Args:
        model (`BlipForImageTextRetrieval`):
            The model; its mode is left as it is.
        processor (`BlipProcessor`):
            The processor it was trained with.
        images (sequence of `ImageSource`):
            At least one, in any form that [`~blip_hf.image_utils.open_image`] takes.
        texts (sequence of `str`):
            The text of each image.
        batch_size (`int`, *optional*, defaults to 32):
            Pairs a batch.

    Returns:
        `torch.Tensor` of shape `(n, text width)`: on the model's device.

    Raises:
        ValueError: If there are not as many texts as images.
        UnreadableImageError: If an image cannot be read.
    """
    if len(images) != len(texts):
        raise ValueError(f"Got {len(images)} images and {len(texts)} texts; pass one text an image.")
    rows = TokenizedTexts.from_texts(processor, texts, model.device)
    batches = []
    with evaluating(model):
        for index in torch.arange(len(texts)).split(batch_size):
            pixel_values = read_pixels(processor, [images[number] for number in index.tolist()])
            memory = model.get_image_memory(pixel_values.to(model.device, model.dtype))
            batches.append(model.get_multimodal_embeds(memory, *rows.batch(index))[:, 0])
    return torch.cat(batches)


def read_pixels(processor: BlipProcessor, images: Sequence[ImageSource]) -> Tensor:
    """Opens images: `pixel_values` of shape `(n, 3, size, size)`."""
    opened = [open_image(image) for image in images]
    return processor(images=opened, return_tensors="pt")["pixel_values"]


__all__ = [
    "TokenizedTexts",
    "encode_texts",
    "evaluating",
    "image_features",
    "multimodal_embeds",
    "read_pixels",
    "text_features",
]
