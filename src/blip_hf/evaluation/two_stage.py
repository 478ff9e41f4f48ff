# SPDX-License-Identifier: BSD-3-Clause
"""Two-stage retrieval (BLIP, section 5.1): cosine similarity selects `k` candidates per query, the ITM head re-ranks them.

A pair that both directions select is scored once. All pairs of an image are scored together, so its keys and values
are projected once, and freed before those of the next image.

Letters: `n` images, `m` texts, `k` candidates per query, `u` distinct pairs, `f` frames, `p` image tokens.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset, Subset
from transformers.utils import logging

from ..configuration_blip import DEFAULT_TEMPERATURE
from ..data.pairs import SkipReporter
from ..data.skips import image_reason
from ..distributed import gather, gather_objects, rank, world_size
from ..image_utils import UnreadableImageError
from ..modeling.retrieval import BlipForImageTextRetrieval
from ..pair_scores import PAIR_SCORE, PairScore, pair_scores
from .features import TokenizedTexts


PairScorer = Callable[[Tensor, Tensor], Tensor]
"""Maps image numbers and text numbers, `(u,)` each, to ITM logits of the pairs, `(u, 2)`."""


@dataclass(frozen=True)
class Candidates:
    """The candidates of each query, best first.

    Args:
        index (`torch.Tensor` of shape `(q, k)`):
            Their numbers.
        scores (`torch.Tensor` of shape `(q, k)`):
            Scores that sort them.
        itm_logits (`torch.Tensor` of shape `(q, k, 2)`):
            ITM logits, unmatched and matched.
        cosines (`torch.Tensor` of shape `(q, k)`):
            Cosines with the query.
    """

    index: Tensor
    scores: Tensor
    itm_logits: Tensor = field(repr=False)
    cosines: Tensor = field(repr=False)

    @classmethod
    def best_first(cls, index: Tensor, scores: Tensor, itm_logits: Tensor, cosines: Tensor) -> "Candidates":
        """Sorts candidates by score; ties keep their order."""
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        itm_logits = itm_logits.gather(1, order[..., None].expand_as(itm_logits))
        return cls(index.gather(1, order), scores, itm_logits, cosines.gather(1, order))

    def sorted_by(self, score: PairScore, *, temperature: float) -> "Candidates":
        """Sorts by a score of [`~blip_hf.pair_scores.pair_scores`]."""
        scores = pair_scores(self.itm_logits, self.cosines, score, temperature=temperature)
        return Candidates.best_first(self.index, scores, self.itm_logits, self.cosines)

    def cpu(self) -> "Candidates":
        """Returns a copy on the CPU."""
        return Candidates(self.index.cpu(), self.scores.cpu(), self.itm_logits.cpu(), self.cosines.cpu())


def rerank(
    similarity: Tensor,
    k: int,
    score_pairs: PairScorer,
    *,
    score: PairScore = PAIR_SCORE,
    temperature: float = DEFAULT_TEMPERATURE,
) -> tuple[Candidates, Candidates, int]:
    """Ranks the `k` nearest texts of each image, and images of each text, by ITM logits and cosines.

    Calls `score_pairs` once, with all distinct pairs sorted by image. `score` and `temperature` are those of
    [`~blip_hf.pair_scores.pair_scores`]. Returns the candidates of each image, those of each text, and the number
    of scored pairs.

    Example:
        >>> similarity = torch.tensor([[0.9, 0.1], [0.2, 0.8]])  # (n, m)
        >>> of_images, of_texts, num_pairs = rerank(similarity, 1, lambda images, texts: torch.zeros(len(images), 2))
        >>> of_images.index.tolist(), of_texts.index.tolist(), num_pairs
        ([[0], [1]], [[0], [1]], 2)
    """
    num_images, num_texts = similarity.shape
    text_index = similarity.topk(min(k, num_texts), dim=1).indices  # (n, k)
    image_index = similarity.topk(min(k, num_images), dim=0).indices.T  # (k, m) -> (m, k)
    # Pairs are numbered row by row, so sorting the numbers groups the pairs by image.
    numbers_of_images = text_index + num_texts * torch.arange(num_images, device=similarity.device)[:, None]
    numbers_of_texts = num_texts * image_index + torch.arange(num_texts, device=similarity.device)[:, None]
    wanted = torch.cat([numbers_of_images.flatten(), numbers_of_texts.flatten()])
    numbers, place = wanted.unique(return_inverse=True)  # (u,), (n * k + m * k,)
    itm_logits, cosines = score_pairs(numbers // num_texts, numbers % num_texts), similarity.take(numbers)
    scores = pair_scores(itm_logits, cosines, score, temperature=temperature)  # (u,)
    num_of_images = text_index.numel()
    own = (place[:num_of_images].view(text_index.shape), place[num_of_images:].view(image_index.shape))
    of_images, of_texts = (
        Candidates.best_first(index, scores[pairs], itm_logits[pairs], cosines[pairs])
        for index, pairs in zip((text_index, image_index), own, strict=True)
    )
    return of_images, of_texts, len(numbers)


class PixelDataset(Dataset):
    """Reads images or videos by number with `read`, which returns `(f, 3, height, width)`; `f` is 1 for an image.

    Items are `(number, pixels, content, None)` with a hash of the pixels, or `(number, None, 0, error)` for an unreadable
    one.
    """

    def __init__(self, numbers: Sequence[int], read: Callable[[int], Tensor]) -> None:
        self.numbers = numbers
        self.read = read

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> tuple[int, Tensor | None, int, UnreadableImageError | None]:
        number = self.numbers[i]
        try:
            pixels = self.read(number)
        except UnreadableImageError as error:
            return number, None, 0, error
        return number, pixels, _hash(pixels), None


def _hash(pixels: Tensor) -> int:
    """64 bits, so that `gather` can send it."""
    digest = blake2b(pixels.contiguous().numpy().data, digest_size=8).digest()
    return int.from_bytes(digest, sys.byteorder, signed=True)


@dataclass
class EncodedImages:
    """Features of all readable images, and vision states of those that this process encoded.

    Args:
        numbers (`torch.Tensor` of shape `(n,)`):
            Numbers of the readable images over all processes, sorted.
        features (`torch.Tensor` of shape `(n, d)`):
            Their features, on the model's device.
        content (`torch.Tensor` of shape `(n,)`):
            Hashes of their pixels, equal for equal images.
        states (`dict[int, torch.Tensor]`):
            Vision states of this process's images, `(f * p, vision width)`, on the CPU, by position in `numbers`.
    """

    numbers: Tensor
    features: Tensor
    content: Tensor
    states: dict[int, Tensor] = field(repr=False)
    skipped: Counter[str] = field(default_factory=Counter)  # on all processes, by reason


def encode_images(
    model: BlipForImageTextRetrieval,
    items: PixelDataset,
    *,
    batch_size: int,
    num_workers: int,
    states_dtype: torch.dtype | None,
    show_progress: bool,
) -> EncodedImages:
    """Runs the vision model once over every image; each process encodes its share.

    A video is encoded as in salesforce/BLIP `eval_retrieval_video.py`: its feature is the mean of the frames' projections,
    normalised, and its states are the tokens of all frames. Unreadable images are skipped with a warning.

    Raises:
        ValueError: If no image can be read.
    """
    width = model.config.image_text_hidden_size
    numbers: list[int] = []
    content: list[int] = []
    states: list[Tensor] = []
    skips = SkipReporter()
    skipped: list[str] = []
    features = [torch.empty(0, width, device=model.device, dtype=torch.float32)]
    own = Subset(items, range(rank(), len(items), world_size()))
    loader = DataLoader(own, batch_size, num_workers=num_workers, collate_fn=list)
    for batch in logging.tqdm(loader, desc="Encoding images", disable=not show_progress):
        for *_, error in batch:
            if error is not None:
                skips.report(str(error))
                skipped.append(image_reason(error.kind))
        readable = [item for item in batch if item[1] is not None]
        if not readable:
            continue
        numbers += [number for number, *_ in readable]
        content += [hashed for _, _, hashed, _ in readable]
        batch_features, batch_states = _encode_frames(model, torch.stack([pixels for _, pixels, *_ in readable]))
        features.append(batch_features)
        states += batch_states.to("cpu", states_dtype).unbind(0)
    columns = torch.tensor([numbers, content], dtype=torch.long).T  # (n of this process, 2)
    all_columns = gather(columns.to(model.device))
    if len(all_columns) == 0:
        raise ValueError(
            f"None of the {len(items)} images or videos can be read. The warnings above name the reasons."
        )
    order = all_columns[:, 0].argsort()
    all_numbers, all_content = all_columns[order].cpu().unbind(dim=1)
    positions = torch.searchsorted(all_numbers.contiguous(), columns[:, 0].contiguous()).tolist()
    return EncodedImages(
        numbers=all_numbers,
        features=gather(torch.cat(features))[order],
        content=all_content,
        states=dict(zip(positions, states, strict=True)),
        skipped=Counter(gather_objects(skipped)),
    )


def _encode_frames(model: BlipForImageTextRetrieval, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """Maps pixels `(b, f, 3, h, w)` to features `(b, d)` and states `(b, f * p, vision width)`."""
    frames = pixel_values.to(model.device, model.dtype).flatten(0, 1)  # (b * f, 3, h, w)
    states = model.vision_model(frames).last_hidden_state.unflatten(0, pixel_values.shape[:2])  # (b, f, p, d)
    projections = model.vision_proj(states[:, :, 0]).float()  # (b, f, d)
    return normalize(projections.mean(dim=1), dim=-1), states.flatten(1, 2)


def matching_scores(
    model: BlipForImageTextRetrieval,
    images: EncodedImages,
    rows: TokenizedTexts,
    *,
    batch_size: int,
    show_progress: bool,
) -> PairScorer:
    """Returns a function that computes the ITM logits of pairs, for `rerank`. Each process scores the pairs of its images.

    The function frees the states of each image after use, so it can be called only once.
    """

    def score(image_index: Tensor, text_index: Tensor) -> Tensor:
        starts = torch.searchsorted(image_index.cpu(), torch.arange(len(images.numbers) + 1)).tolist()
        text_index = text_index.cpu()
        places = [torch.empty(0, dtype=torch.long)]
        own_logits = [torch.empty(0, 2, device=model.device, dtype=torch.float32)]
        for number in logging.tqdm(sorted(images.states), desc="Re-ranking", disable=not show_progress):
            states = images.states.pop(number)[None].to(model.device, model.vision_proj.weight.dtype)
            memory = model.text_encoder.build_image_memory(states)
            own = torch.arange(starts[number], starts[number + 1])
            for position in rows.by_length(text_index[own], batch_size):
                place = own[position]
                logits = model.get_itm_logits(memory, *rows.batch(text_index[place]))
                places.append(place)
                own_logits.append(logits.float())
        all_places = gather(torch.cat(places).to(model.device))
        all_logits = gather(torch.cat(own_logits))
        return torch.empty_like(all_logits).index_copy_(0, all_places, all_logits)  # (u, 2)

    return score


__all__ = [
    "Candidates",
    "EncodedImages",
    "PairScorer",
    "PixelDataset",
    "encode_images",
    "matching_scores",
    "rerank",
]
