# SPDX-License-Identifier: BSD-3-Clause
"""The retrieval model of an index: encodes images and queries, and re-ranks images by the ITM head."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..capfilt.engine import fingerprint, processor_fingerprint
from ..checkpoints import require_checkpoint
from ..data.read_ahead import read_ahead
from ..data.text import pre_caption
from ..devices import pick_device
from ..evaluation.features import TokenizedTexts, evaluating, text_features
from ..finite import require_finite_results
from ..image_utils import MAX_IMAGE_BYTES, ImageSource, UnreadableImageError, image_errors, open_image
from ..modeling.cpu import optimize_for_cpu
from ..modeling.projection import pool_and_project
from ..modeling.retrieval import BlipForImageTextRetrieval
from ..processing_blip import BlipProcessor
from .sources import FoundImage
from .store import StoredImage


# Pixels of decoded images that a thread keeps before they are resized.
_MAX_DECODED_PIXELS = 4_000_000


@dataclass(frozen=True)
class EncodedImage:
    """The vector of an image, `(d,)`, with its content; or the digest alone of a known content; or an error."""

    stored: StoredImage
    digest: str | None = None
    size: tuple[int, int] | None = None
    vector: np.ndarray | None = None
    states: np.ndarray | None = None
    error: str | None = None
    error_kind: str | None = None


class RetrievalEncoder:
    """A retrieval model with its processor, for an index.

    Args:
        model (`BlipForImageTextRetrieval`):
            The model. It is put in evaluation mode.
        processor (`BlipProcessor`):
            The processor it was trained with.
        name (`str`):
            Folder or model id of the model.
        batch_size (`int`, *optional*, defaults to 32):
            Images per batch.
        num_workers (`int`, *optional*, defaults to 2):
            Threads that read images ahead of the model.
    """

    def __init__(
        self,
        model: BlipForImageTextRetrieval,
        processor: BlipProcessor,
        name: str,
        *,
        batch_size: int = 32,
        num_workers: int = 2,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.name = name
        self.batch_size = batch_size
        self.num_workers = num_workers

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], *, device: str | None = None, dtype: str = "float32", **options: Any
    ) -> "RetrievalEncoder":
        """Loads a model of this package or of transformers. `options` are `batch_size` and `num_workers`."""
        require_checkpoint(str(name))
        chosen = pick_device(device)
        model = BlipForImageTextRetrieval.from_pretrained(name, dtype=getattr(torch, dtype)).to(chosen)
        if chosen.type == "cpu":
            optimize_for_cpu(model)
        processor = BlipProcessor.from_pretrained(name)
        return cls(model, processor, os.path.abspath(name) if Path(name).is_dir() else str(name), **options)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Name and digests of the model and its processor, and the shapes that an index stores."""
        vision = self.model.config.vision_config
        num_tokens = (vision.image_size // vision.patch_size) ** 2 + 1
        return {
            "model": self.name,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "weights": fingerprint(self.model),
            "processor": processor_fingerprint(self.processor),
            "width": self.model.config.image_text_hidden_size,
            "states": [num_tokens, vision.hidden_size],
        }

    # Images

    def encode_images(self, images: Iterable[FoundImage], *, keep_states: bool) -> Iterator[list[EncodedImage]]:
        """Encodes images in order and yields them in batches. Each thread reads a batch ahead."""
        batches = read_ahead(
            _cut(images, self.batch_size),
            partial(_read_batch, self.processor),
            num_workers=self.num_workers,
            depth=max(2, self.num_workers),
        )
        for batch in batches:
            yield self._encode(batch, keep_states=keep_states)

    def _encode(self, batch: "_ReadBatch", *, keep_states: bool) -> list[EncodedImage]:
        if batch.pixel_values is None:
            return batch.images
        states, features = self._forward(batch.pixel_values)
        encoded, new = list(batch.images), batch.new
        names = [encoded[number].stored.name for number in new]
        require_finite_results(features.isfinite().all(dim=1).tolist(), names, model=self.model)
        kept = states.half().cpu().numpy() if keep_states else [None] * len(new)
        for number, vector, own_states in zip(new, features.cpu().numpy(), kept, strict=True):
            encoded[number] = replace(encoded[number], vector=vector, states=own_states)
        return encoded

    def _forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Image states, `(b, p, vision width)`, and features, `(b, d)`, fp32."""
        with evaluating(self.model):
            states = self.model.vision_model(pixel_values.to(self.model.device, self.model.dtype)).last_hidden_state
            return states, pool_and_project(states, self.model.vision_proj).float()

    # Queries

    def image_vector(self, image: ImageSource) -> np.ndarray:
        """The vector of an image, `(d,)`."""
        pixel_values = self.processor(images=open_image(image), return_tensors="pt")["pixel_values"]
        return self._forward(pixel_values)[1][0].cpu().numpy()

    def text_vector(self, text: str) -> np.ndarray:
        """The vector of a text, `(d,)`. The text is normalised as in training."""
        return text_features(self.model, self.processor, [normalize_query(text)])[0].cpu().numpy()

    def image_states(self, images: Sequence[ImageSource]) -> Iterator[Tensor | None]:
        """States of images, `(p, vision width)` each; `None` for one that cannot be read."""

        def read(image: ImageSource) -> Tensor | None:
            try:
                return self.processor(images=open_image(image), return_tensors="pt")["pixel_values"]
            except UnreadableImageError:
                return None

        pixels = read_ahead(images, read, num_workers=self.num_workers, depth=2 * self.batch_size)
        while batch := list(islice(pixels, self.batch_size)):
            readable = [item for item in batch if item is not None]
            states = iter(self._forward(torch.cat(readable))[0] if readable else ())
            yield from (None if item is None else next(states) for item in batch)

    def itm_logits(self, text: str, states: Sequence[Tensor]) -> Tensor:
        """ITM logits of a text with images by their states, `(n, 2)`, fp32."""
        rows = TokenizedTexts.from_texts(self.processor, [normalize_query(text)], self.model.device)
        input_ids, mask = rows.batch(torch.tensor([0]))
        parts = []
        with evaluating(self.model):
            for start in range(0, len(states), self.batch_size):
                batch = torch.stack(list(states[start : start + self.batch_size]))
                memory = self.model.text_encoder.build_image_memory(batch.to(self.model.device, self.model.dtype))
                parts.append(self.model.get_itm_logits(memory, input_ids, mask).float().cpu())
        return torch.cat(parts)


@dataclass(frozen=True)
class _ReadBatch:
    images: list[EncodedImage]
    new: list[int]  # numbers of the images whose content is new
    pixel_values: Tensor | None  # theirs, (n, 3, size, size)


def _cut(images: Iterable[FoundImage], batch_size: int) -> Iterator[list[FoundImage]]:
    images = iter(images)
    while batch := list(islice(images, batch_size)):
        yield batch


def _read_batch(processor: BlipProcessor, batch: Sequence[FoundImage]) -> _ReadBatch:
    """Reads the images of a batch."""
    encoded: list[EncodedImage] = []
    new: list[int] = []
    decoded: list[Image.Image] = []
    parts: list[Tensor] = []

    def process() -> None:
        # Without the options of texts. Checking those of images takes as long as a small image, so many share a call.
        parts.append(processor.image_processor(images=decoded, return_tensors="pt")["pixel_values"])
        decoded.clear()

    for number, found in enumerate(batch):
        image, decoded_image = _read(found)
        encoded.append(image)
        if decoded_image is not None:
            new.append(number)
            decoded.append(decoded_image)
            if sum(each.width * each.height for each in decoded) > _MAX_DECODED_PIXELS:
                process()
    if decoded:
        process()
    return _ReadBatch(encoded, new, torch.cat(parts) if parts else None)


def _read(found: FoundImage) -> tuple[EncodedImage, Image.Image | None]:
    """Reads and hashes an image. It is decoded only if the index does not know its content."""
    try:
        content = _content(found.image)
        digest = sha256(content).hexdigest()[:32]
        if digest in found.known_digests:
            return EncodedImage(found.stored, digest), None
        image = open_image(content, name=found.stored.name)
    except UnreadableImageError as error:
        return EncodedImage(found.stored, error=str(error), error_kind=error.kind), None
    return EncodedImage(found.stored, digest, image.size), image


def _content(image: str | bytes) -> bytes:
    if isinstance(image, bytes):
        return image
    path = Path(image)
    with image_errors(image):
        size = path.stat().st_size
    if not path.is_file() or size > MAX_IMAGE_BYTES:
        open_image(path)  # raises for what is no regular file or too large
    with image_errors(image):
        return path.read_bytes()


def normalize_query(text: str) -> str:
    """Normalises a text as in training. Raises `ValueError` if it has no words."""
    normalized = pre_caption(text)
    if not normalized.strip():
        raise ValueError(f"The text is {text!r}, expected a text with words.")
    return normalized


__all__ = ["EncodedImage", "RetrievalEncoder", "normalize_query"]
