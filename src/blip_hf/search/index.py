# SPDX-License-Identifier: BSD-3-Clause
"""An index of images that is searched by text, by image or by both."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..evaluation.zero_shot import DEFAULT_TEMPERATURE, DEFAULT_TEMPLATES, build_label_features, classify
from ..image_utils import ImageSource
from ..pair_scores import PAIR_SCORE, PairScore, check_score
from .building import check_model, update_index
from .duplicates import find_groups
from .encoder import RetrievalEncoder
from .engines import LocalEngine
from .filters import Filter, parse_filters
from .neighbors import Neighbors
from .reranking import RankedRow, rerank_rows
from .sources import SourceOptions, reopen_images
from .store import Store, StoredImage
from .updating import UpdateCounts


@dataclass(frozen=True, kw_only=True)
class Hit:
    """An image of an index that a search found."""

    image: str
    """Its full path, or that of its tar, Parquet file or data set with its key."""
    similarity: float
    """Cosine with the text or the image; with both, the weighted mean of the two."""
    itm_probability: float | None = None
    """Probability that it matches the text, from the ITM head, if it was re-ranked."""
    pair_score: float | None = None
    """Score that sorted it, if it was re-ranked."""
    caption: str | None = None
    """Its captions in the source, one a line."""
    image_id: str | None = None
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, kw_only=True)
class LabeledImage:
    """An image and its most probable label."""

    image: str
    label: str
    probability: float


class BlipIndex:
    """An index of images, searched with a retrieval model. Use [`BlipIndex.build`] or [`BlipIndex.open`].

    Args:
        store (`Store`):
            Files of the index.
        encoder (`RetrievalEncoder`):
            The model of the index.

    Example:
        >>> index = BlipIndex.build("my.index", ["photos"], model="runs/demo/retriever")  # doctest: +SKIP
        >>> for hit in index.search("a dog jumping over a log", k=5):  # doctest: +SKIP
        ...     print(hit.image, hit.similarity)
    """

    def __init__(self, store: Store, encoder: RetrievalEncoder) -> None:
        check_model(store, encoder.identity)
        self.store = store
        self.encoder = encoder

    @classmethod
    def build(
        cls,
        folder: str | os.PathLike[str],
        sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        model: str | os.PathLike[str],
        keep_states: bool = False,
        **encoder_options: Any,
    ) -> "BlipIndex":
        """Indexes the images of sources, or brings an existing index up to date.

        Args:
            folder (`str` or `os.PathLike`):
                Folder of the index.
            sources (`str`, `os.PathLike` or a sequence of them):
                Whatever [`~blip_hf.data.readers.load_images`] reads, apart from objects in memory. Folders are searched with
                their subfolders.
            model (`str` or `os.PathLike`):
                Folder or model id of a retrieval model.
            keep_states (`bool`, *optional*, defaults to `False`):
                Whether to keep the image states in half precision, so that re-ranking opens no image.
            **encoder_options:
                `batch_size`, `num_workers`, `device` and `dtype`.

        Raises:
            ImportError: If faiss is not installed.
            ValueError: If a source does not exist, or the folder has an index of another model.
        """
        encoder = RetrievalEncoder.from_pretrained(model, **encoder_options)
        update_index(folder, LocalEngine(encoder), _as_list(sources), keep_states=keep_states)
        return cls(Store(Path(folder)), encoder)

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        model: str | os.PathLike[str] | None = None,
        device: str | None = None,
        **encoder_options: Any,
    ) -> "BlipIndex":
        """Opens an index with its model.

        Args:
            folder (`str` or `os.PathLike`):
                Folder of the index.
            model (`str` or `os.PathLike`, *optional*):
                Where the model is, if not where the index was built from.
            device (`str`, *optional*):
                Defaults to an accelerator, if there is one.
            **encoder_options:
                `batch_size` and `num_workers`.

        Raises:
            ValueError: If there is no index, or the model is not that of the index.
        """
        store = Store(Path(folder))
        name = store.settings["model"] if model is None else model
        dtype = store.settings["dtype"]
        return cls(store, RetrievalEncoder.from_pretrained(name, device=device, dtype=dtype, **encoder_options))

    def __len__(self) -> int:
        return self.store.num_images()

    def add(self, sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], **options: Any) -> UpdateCounts:
        """Adds the images of sources, or brings them up to date. Arguments as in [`update_index`].

        Images that a source no longer has are removed. Those of other sources are kept.
        """
        counts = update_index(self.store.folder, LocalEngine(self.encoder), _as_list(sources), **options)
        for cached in ("neighbors", "_all_rows"):
            self.__dict__.pop(cached, None)
        return counts

    @cached_property
    def neighbors(self) -> Neighbors:
        """The nearest-neighbour search over the vectors."""
        return Neighbors(self.store)

    @cached_property
    def _all_rows(self) -> np.ndarray:
        return self.store.live_rows()

    def _rows(self, own: Filter) -> np.ndarray:
        return self._all_rows if own.condition is None else self.store.live_rows(own.condition, own.values)

    @property
    def skipped(self) -> list[StoredImage]:
        """The images that could not be read, with their `error`."""
        return self.store.skipped()

    def search(
        self,
        text: str | None = None,
        *,
        image: ImageSource | None = None,
        k: int = 10,
        rerank: int = 0,
        filters: Iterable[str] = (),
        image_weight: float = 0.5,
        score: PairScore = PAIR_SCORE,
    ) -> list[Hit]:
        """Finds the images that are nearest to a text, to an image, or to both.

        Args:
            text (`str`, *optional*):
                The text.
            image (`ImageSource`, *optional*):
                The image.
            k (`int`, *optional*, defaults to 10):
                Number of images.
            rerank (`int`, *optional*, defaults to 0):
                Number of candidates that the ITM head compares with the text, and that are then sorted by `score`.
            filters (iterable of `str`, *optional*):
                Conditions that all hold, such as `"photos/2026"`, `"width>=640"` or `"caption=*dog*"`.
            image_weight (`float`, *optional*, defaults to 0.5):
                Weight of the image, in [0, 1], if there is a text too.
            score (`str`, *optional*, defaults to `"paper"`):
                Score of re-ranking: `"paper"`, `"posterior"` or `"itm"`, see
                [`~blip_hf.pair_scores.pair_scores`]. It compares with the text alone, also if there is an image.

        Returns:
            `list[Hit]`: best first.

        Raises:
            ValueError: If there is neither text nor image, or an argument is out of its range.
            UnreadableImageError: If the image cannot be read.
        """
        if text is None and image is None:
            raise ValueError("There is nothing to search for. Pass a text, an image, or both.")
        if k < 1 or rerank < 0 or not 0 <= image_weight <= 1:
            raise ValueError(
                f"k={k}, rerank={rerank} and image_weight={image_weight}: expected 1 or more, 0 or more, and 0 to 1."
            )
        if rerank and text is None:
            raise ValueError("Re-ranking compares images with a text. Pass a text, or leave rerank out.")
        check_score(score)
        query = self._query_vector(text, image, image_weight)
        own = parse_filters(filters)
        rows, similarities = self.neighbors.search(query[None], max(k, rerank), self._rows(own))
        found = [(int(row), float(value)) for row, value in zip(rows[0], similarities[0], strict=True) if row >= 0]
        ranked: dict[int, RankedRow] = {}
        if rerank and text is not None:
            cosines = dict(found[:rerank])
            if image is not None:
                products = self.neighbors.vectors[list(cosines)] @ self.encoder.text_vector(text)
                cosines = dict(zip(cosines, products.tolist(), strict=True))
            found, ranked = rerank_rows(self.store, self.encoder, text, found, cosines, score=score)
        return self._hits(found, ranked, own)[:k]

    def image_sources(self, names: Iterable[str]) -> dict[str, str | bytes]:
        """Finds the images of hits again, to open them with [`~blip_hf.image_utils.open_image`].

        Args:
            names (iterable of `str`):
                `image` of hits.

        Returns:
            `dict[str, str | bytes]`: by name, the path of an image file, or the bytes from a tar, Parquet file or data set.
            Images that are no longer in their container are missing.
        """
        stored = filter(None, map(self.store.find, names))
        # Sources were checked when they were indexed.
        return reopen_images(list(stored), SourceOptions(allow_outside=True))

    def duplicates(self, threshold: float = 0.95, *, filters: Iterable[str] = ()) -> list[list[Hit]]:
        """Groups of images with equal content or nearly equal vectors.

        Args:
            threshold (`float`, *optional*, defaults to 0.95):
                Least cosine of an image with the first of its group.
            filters (iterable of `str`, *optional*):
                As in [`BlipIndex.search`].

        Returns:
            `list[list[Hit]]`: groups of two or more images. `similarity` is the cosine with the first of the group.
        """
        own = parse_filters(filters)
        groups = find_groups(self.neighbors, self._rows(own), threshold)
        hits = []
        for rows in groups:
            cosines = self.neighbors.vectors[rows] @ self.neighbors.vectors[rows[0]]
            hits.append(self._hits([(row, float(value)) for row, value in zip(rows, cosines, strict=True)], {}, own))
        return [group for group in hits if len(group) > 1]

    def label(
        self,
        labels: Sequence[str],
        *,
        filters: Iterable[str] = (),
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        temperature: float = DEFAULT_TEMPERATURE,
    ) -> list[LabeledImage]:
        """Gives each image its most probable label, as [`~blip_hf.evaluation.zero_shot.ZeroShotClassifier`] does.

        Args:
            labels (sequence of `str`):
                At least two labels, without duplicates.
            filters (iterable of `str`, *optional*):
                As in [`BlipIndex.search`].
            templates, temperature:
                As in [`~blip_hf.evaluation.zero_shot.ZeroShotClassifier`].

        Returns:
            `list[LabeledImage]`: in the order of the labels, the most probable images of each first.
        """
        model, processor = self.encoder.model, self.encoder.processor
        label_features = build_label_features(model, processor, labels, templates=templates).cpu()
        own = parse_filters(filters)
        found: list[tuple[int, LabeledImage]] = []
        rows = self._rows(own)
        for start in range(0, len(rows), 10_000):
            block = rows[start : start + 10_000]
            features = torch.from_numpy(self.neighbors.vectors[block])
            best = classify(features, label_features, temperature=temperature).max(dim=1)
            for row, number, probability in zip(block, best.indices.tolist(), best.values.tolist(), strict=True):
                images = self.store.images_of(int(row), own.condition, own.values)
                found += [
                    (number, LabeledImage(image=image.name, label=labels[number], probability=probability))
                    for image in images
                ]
        return [image for _, image in sorted(found, key=lambda item: (item[0], -item[1].probability))]

    def _query_vector(self, text: str | None, image: ImageSource | None, image_weight: float) -> np.ndarray:
        text_vector = None if text is None else self.encoder.text_vector(text)
        if image is None:
            assert text_vector is not None  # see `search`
            return text_vector
        image_vector = self.encoder.image_vector(image)
        if text_vector is None:
            return image_vector
        return (1 - image_weight) * text_vector + image_weight * image_vector

    def _hits(self, found: Sequence[tuple[int, float]], ranked: dict[int, RankedRow], own: Filter) -> list[Hit]:
        """A hit for each image of the rows that fulfils the filter."""
        return [
            Hit(
                image=image.name,
                similarity=similarity,
                **ranked.get(row, RankedRow())._asdict(),
                caption=image.caption,
                image_id=image.image_id,
                width=image.width,
                height=image.height,
            )
            for row, similarity in found
            for image in self.store.images_of(row, own.condition, own.values)
        ]


def _as_list(sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    if isinstance(sources, (str, os.PathLike)):
        return [os.fspath(sources)]
    return [os.fspath(source) for source in sources]


__all__ = ["BlipIndex", "Hit", "LabeledImage"]
