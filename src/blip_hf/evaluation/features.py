# SPDX-License-Identifier: BSD-3-Clause
"""Features of many images and texts, computed in batches. The batch changes a row only by rounding."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.image_batches import image_batches
from ..image_utils import ImageSource, open_image
from ..modeling.retrieval import BlipForImageTextRetrieval
from ..processing_blip import BlipProcessor
from .defaults import BATCH_SIZE


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of many texts, `(m, t)`, padded on the right, and their lengths, `(m,)`, on the CPU."""

    input_ids: Tensor
    lengths: Tensor

    @classmethod
    def from_texts(cls, processor: BlipProcessor, texts: Sequence[str], device: torch.device) -> "TokenizedTexts":
        """Tokenizes at least one text, truncated to 35 tokens as in BLIP's retrieval."""
        rows = processor(text=list(texts), role="contrast", return_tensors="pt")
        return cls(rows["input_ids"].to(device), rows["attention_mask"].sum(dim=1))

    def by_length(self, index: Tensor, batch_size: int) -> Iterator[Tensor]:
        """Yields positions in `index` in batches, shortest texts first."""
        return iter(self.lengths[index].argsort(stable=True).split(batch_size))

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Returns token ids and mask of the texts at `index`, `(b, longest)` each."""
        lengths = self.lengths[index]
        device, longest = self.input_ids.device, int(lengths.max())
        mask = torch.arange(longest) < lengths[:, None]  # (b, longest)
        return self.input_ids[index.to(device), :longest], mask.long().to(device)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Runs its block in evaluation mode without gradients, then restores the mode of the model."""
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
    batch_size: int = BATCH_SIZE,
    num_workers: int = 0,
) -> Tensor:
    """Returns one unit vector per image, `(n, d)`, fp32. Dot products with `text_features` are cosine similarities.

    Images have any form that [`~blip_hf.image_utils.open_image`] takes. `num_workers` threads read them ahead
    of the model; 0 reads each batch when it is needed. The mode of the model is kept.

    Raises:
        UnreadableImageError: If an image cannot be read.
    """
    with evaluating(model):
        batches = [
            model.get_image_features(batch.pixel_values.to(model.device, model.dtype)).pooler_output
            for batch in image_batches(processor, images, batch_size=batch_size, num_workers=num_workers)
        ]
    return torch.cat(batches)


def text_features(
    model: BlipForImageTextRetrieval, processor: BlipProcessor, texts: Sequence[str], *, batch_size: int = 256
) -> Tensor:
    """Returns one unit vector per text, `(m, d)`, fp32.

    BLIP is trained on captions normalised by [`~blip_hf.data.text.pre_caption`]. The mode of the model is kept.
    """
    rows = TokenizedTexts.from_texts(processor, texts, model.device)
    with evaluating(model):
        return encode_texts(model, rows, torch.arange(len(texts)), batch_size)


def encode_texts(model: BlipForImageTextRetrieval, rows: TokenizedTexts, index: Tensor, batch_size: int) -> Tensor:
    """Returns the features of the texts at `index`, `(r, d)`."""
    width = model.config.image_text_hidden_size
    features = torch.empty(len(index), width, device=model.device, dtype=torch.float32)
    for position in rows.by_length(index, batch_size):
        texts = model.get_text_features(*rows.batch(index[position]), cls_only=True)
        features[position.to(model.device)] = texts.pooler_output
    return features


def multimodal_embeds(
    model: BlipForImageTextRetrieval,
    processor: BlipProcessor,
    images: Sequence[ImageSource],
    texts: Sequence[str],
    *,
    batch_size: int = BATCH_SIZE,
    num_workers: int = 0,
) -> Tensor:
    """Returns one vector per image-text pair, `(n, text width)`: the output of the image-grounded text encoder at [ENC].

    The ITM head reads it. It is neither projected nor normalised, and no training objective compares two of these vectors.

    Raises:
        ValueError: If the numbers of images and texts differ.
        UnreadableImageError: If an image cannot be read.
    """
    if len(images) != len(texts):
        raise ValueError(f"Got {len(images)} images and {len(texts)} texts. Pass one text per image.")
    rows = TokenizedTexts.from_texts(processor, texts, model.device)
    batches = []
    with evaluating(model):
        for batch in image_batches(processor, images, batch_size=batch_size, num_workers=num_workers):
            index = torch.tensor(batch.indices)
            memory = model.get_image_memory(batch.pixel_values.to(model.device, model.dtype))
            batches.append(model.get_multimodal_embeds(memory, *rows.batch(index))[:, 0])
    return torch.cat(batches)


def read_pixels(processor: BlipProcessor, images: Sequence[ImageSource]) -> Tensor:
    """Opens images and returns `pixel_values`, `(n, 3, size, size)`."""
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
