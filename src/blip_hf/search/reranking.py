# SPDX-License-Identifier: BSD-3-Clause
"""Re-ranks images by ITM logits and cosines, from their states in the index or from their files."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..pair_scores import PairScore, pair_scores
from .encoder import RetrievalEncoder
from .sources import SourceOptions, reopen_images
from .store import Store


class RankedRow(NamedTuple):
    """Scores of a row with the text."""

    itm_probability: float | None = None
    pair_score: float | None = None


def rerank_rows(
    store: Store,
    encoder: RetrievalEncoder,
    text: str,
    found: Sequence[tuple[int, float]],
    cosines: Mapping[int, float],
    *,
    score: PairScore,
) -> tuple[list[tuple[int, float]], dict[int, RankedRow]]:
    """Sorts the rows that have cosines with a text by their score with it, and returns their scores by row.

    Other rows, and those whose image cannot be read any more, follow in their old order.
    """
    states = _states(store, encoder, list(cosines))
    if not states:
        return list(found), {}
    logits = encoder.itm_logits(text, list(states.values()))  # (r, 2)
    own_cosines = torch.tensor([cosines[row] for row in states])
    # Probabilities near 1 are equal in float32, scores are not.
    values = pair_scores(logits, own_cosines, score, temperature=encoder.model.config.itm_temperature)
    scores = dict(zip(states, values.tolist(), strict=True))
    probabilities = logits.softmax(dim=-1)[:, 1].tolist()
    ranked = {row: RankedRow(probability, scores[row]) for row, probability in zip(states, probabilities, strict=True)}
    in_order = sorted((item for item in found if item[0] in ranked), key=lambda item: -scores[item[0]])
    return [*in_order, *(item for item in found if item[0] not in ranked)], ranked


def _states(store: Store, encoder: RetrievalEncoder, rows: Sequence[int]) -> dict[int, Tensor]:
    """The states of rows, `(p, vision width)` each."""
    if store.states_file is not None:
        kept = store.states_file.read(store.num_rows())
        return {row: torch.from_numpy(kept[row].copy()) for row in rows}
    images = [store.images_of(row)[0] for row in rows]
    # Sources were checked when they were indexed.
    content = reopen_images(images, SourceOptions(allow_outside=True))
    present = {row: content[image.name] for row, image in zip(rows, images, strict=True) if image.name in content}
    states = encoder.image_states(list(present.values()))
    return {row: own for row, own in zip(present, states, strict=True) if own is not None}


__all__ = ["RankedRow", "rerank_rows"]
