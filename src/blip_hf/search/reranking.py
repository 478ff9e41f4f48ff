# SPDX-License-Identifier: BSD-3-Clause
"""Re-ranks images by the ITM head, from their states in the index or from their files."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .encoder import RetrievalEncoder
from .sources import SourceOptions, reopen_images
from .store import Store


def rerank_rows(
    store: Store, encoder: RetrievalEncoder, text: str, found: Sequence[tuple[int, float]], number: int
) -> tuple[list[tuple[int, float]], dict[int, float]]:
    """Sorts the first `number` of the rows by their ITM score with a text, and returns their ITM probabilities by row.

    Rows whose image cannot be read any more follow in their old order.
    """
    states = _states(store, encoder, [row for row, _ in found[:number]])
    if not states:
        return list(found), {}
    logits = encoder.itm_logits(text, list(states.values()))  # (r, 2)
    # Probabilities near 1 are equal in float32, their logits are not.
    scores = dict(zip(states, (logits[:, 1] - logits[:, 0]).tolist(), strict=True))
    probabilities = dict(zip(states, logits.softmax(dim=-1)[:, 1].tolist(), strict=True))
    ranked = sorted((item for item in found if item[0] in scores), key=lambda item: -scores[item[0]])
    return [*ranked, *(item for item in found if item[0] not in scores)], probabilities


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


__all__ = ["rerank_rows"]
