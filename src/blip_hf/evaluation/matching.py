# SPDX-License-Identifier: BSD-3-Clause
"""Compares images with texts by both scores of a retrieval model: ITM probability and ITC similarity."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.image_batches import ImageResult, OnError, image_batches
from ..data.text import pre_caption
from ..image_utils import ImageSource
from ..modeling.projection import pool_and_project
from ..modeling.retrieval import BlipForImageTextRetrieval
from ..processing_blip import BlipProcessor
from .features import TokenizedTexts, encode_texts, evaluating


# Rows of the text encoder per pass.
_MAX_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Match(ImageResult):
    """The scores of an image and a text."""

    text: str | None = None
    """The text as it was given; `None` if the image could not be read."""
    itm_probability: float | None = None
    """Probability that image and text match, from the ITM head."""
    itc_similarity: float | None = None
    """Cosine of the features of image and text."""


def match_texts(
    model: BlipForImageTextRetrieval,
    processor: BlipProcessor,
    images: Iterable[ImageSource],
    texts: str | Sequence[str] | Sequence[Sequence[str]],
    *,
    batch_size: int = 8,
    normalize_texts: bool = True,
    num_workers: int = 0,
    on_error: OnError = "raise",
    pairwise: bool = False,
) -> list[Match]:
    """Compares each image with each text. An image is encoded once for all texts.

    Args:
        model (`BlipForImageTextRetrieval`):
            The model; its mode, device and dtype are kept.
        processor (`BlipProcessor`):
            The processor it was trained with.
        images (iterable of `ImageSource`):
            Paths, PIL images, or any other form that [`~blip_hf.image_utils.open_image`] reads.
        texts (`str`, sequence of `str`, or sequence of sequences of `str`):
            Texts to compare with each image; with `pairwise`, the texts of each image.
        batch_size (`int`, *optional*, defaults to 8):
            Images per batch.
        normalize_texts (`bool`, *optional*, defaults to `True`):
            Whether to apply [`~blip_hf.data.text.pre_caption`], as in training.
        num_workers (`int`, *optional*, defaults to 0):
            Threads that read images ahead of the model.
        on_error (`"raise"` or `"skip"`, *optional*, defaults to `"raise"`):
            Whether to raise an error for an unreadable image, or to return one `Match` with its `error`.
        pairwise (`bool`, *optional*, defaults to `False`):
            Whether each image has its own texts, `texts[i]`, rather than all of them.

    Returns:
        `list[Match]`: one for each pair, in the order of images, then texts.

    Raises:
        ValueError: If there are no texts, or one has no words; with `pairwise`, if the numbers of images and lists of texts
            differ.
        UnreadableImageError: If an image cannot be read and `on_error` is `"raise"`.

    Example:
        >>> match_texts(model, processor, ["dog.jpg"], ["a dog", "a cat"])  # doctest: +SKIP
        [Match(image_index=0, text='a dog', itm_probability=0.98, itc_similarity=0.41), Match(image_index=0, ...)]
    """
    given: list[Any] = [texts] if isinstance(texts, str) else list(texts)
    if pairwise:
        images = list(images)
        if any(isinstance(own, str) for own in given):
            raise ValueError(f"texts is {texts!r}, expected one list of texts per image with `pairwise`.")
        if len(images) != len(given):
            raise ValueError(f"Got {len(images)} images and {len(given)} lists of texts. Pass one list per image.")
        columns_of = torch.arange(sum(map(len, given))).split([len(own) for own in given])
        given = [text for own in given for text in own]
    normalized = [pre_caption(text) for text in given] if normalize_texts else given
    if not normalized or not all(text.strip() for text in normalized):
        raise ValueError(f"texts is {texts!r}, expected at least one text, each with words.")
    all_columns = torch.arange(len(given))
    matches: list[Match] = []
    batches = image_batches(processor, images, batch_size=batch_size, num_workers=num_workers, on_error=on_error)
    with evaluating(model):
        rows = TokenizedTexts.from_texts(processor, normalized, model.device)
        features = encode_texts(model, rows, all_columns, _MAX_ROWS)  # (m, d)
        for batch in batches:
            found = batch.failures(Match)
            if batch.indices:
                states = model.vision_model(batch.pixel_values.to(model.device, model.dtype)).last_hidden_state
                # Images that share their texts are compared together.
                groups = [(batch.indices, all_columns)]
                if pairwise:
                    groups = [([index], columns_of[index]) for index in batch.indices]
                for (indices, columns), own in zip(
                    groups, states.split([len(each) for each, _ in groups]), strict=True
                ):
                    scores = _scores(model, own, rows, features, columns)
                    found |= _matches(indices, [given[column] for column in columns.tolist()], *scores)
            matches += [own for index in sorted(found) for own in found[index]]
    return matches


def _scores(
    model: BlipForImageTextRetrieval, states: Tensor, rows: TokenizedTexts, text_features: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    """ITM probabilities and cosines of the states of `n` images with the texts at `c` columns, `(n, c)` each."""
    cosines = pool_and_project(states, model.vision_proj) @ text_features[columns.to(text_features.device)].T
    memory = model.text_encoder.build_image_memory(states)
    num_images = len(states)
    parts = []
    for index in columns.split(max(1, _MAX_ROWS // num_images)):
        input_ids, mask = rows.batch(index)
        logits = model.get_itm_logits(memory, input_ids.repeat(num_images, 1), mask.repeat(num_images, 1))
        parts.append(logits.float().softmax(dim=-1)[:, 1].view(num_images, -1))
    return torch.cat(parts, dim=1), cosines


def _matches(indices: Sequence[int], texts: Sequence[str], itm: Tensor, itc: Tensor) -> dict[int, list[Match]]:
    """The scores `(n, c)` of images with all texts, by index of the image."""
    return {
        index: [
            Match(image_index=index, text=text, itm_probability=probability, itc_similarity=cosine)
            for text, probability, cosine in zip(texts, probabilities, cosines, strict=True)
        ]
        for index, probabilities, cosines in zip(indices, itm.tolist(), itc.tolist(), strict=True)
    }


__all__ = ["Match", "match_texts"]
