# SPDX-License-Identifier: BSD-3-Clause
"""Two-stage retrieval (encoding, re-ranking), compared with the procedure of salesforce/BLIP.

Times are linear in queries and a full run takes an hour at base size, so only some queries are timed.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from blip_hf import BlipConfig, BlipForImageTextRetrieval
from blip_hf.evaluation.features import TokenizedTexts, encode_texts
from blip_hf.evaluation.two_stage import EncodedImages, matching_scores, rerank

from . import original
from .harness import OURS, Case, Options, run
from .sizes import build, config_fields, pad_to, random_captions, random_pixels


# Images, captions, candidates per query, and timed fraction of the queries.
PROBLEMS = {"base": (200, 1000, 32, 0.01), "small": (40, 200, 16, 0.1), "tiny": (4, 8, 2, 0.5)}
CAPTION_LENGTH = 12


def cases(options: Options) -> Iterator[Case]:
    """One case."""
    num_images, num_texts, k, share = PROBLEMS[options.size_name]
    size, device = options.size, options.device
    model = build(BlipForImageTextRetrieval, BlipConfig(**config_fields(size)), device)
    similarity = torch.rand(num_images, num_texts, generator=torch.Generator().manual_seed(3)).to(device)
    own_images, own_texts = int(num_images * share), int(num_texts * share)
    pixels = random_pixels(own_images, size.image_size, device)
    captions = random_captions(num_texts, CAPTION_LENGTH, size, device)
    rows = TokenizedTexts(captions, torch.full((num_texts,), CAPTION_LENGTH))
    padded, padded_mask = pad_to(captions, original.RETRIEVAL_LENGTH)
    wanted_images, wanted_texts = pairs_of_first_images(similarity, k, own_images)

    @torch.no_grad()
    def ours() -> Tensor:
        states = model.vision_model(pixels).last_hidden_state
        encode_texts(model, rows, torch.arange(own_texts), batch_size=256)
        numbers = torch.arange(own_images)
        images = EncodedImages(numbers, torch.empty(0), content=numbers, states=dict(enumerate(states)))
        score = matching_scores(model, images, rows, batch_size=256, show_progress=False)
        return score(wanted_images, wanted_texts)

    @torch.no_grad()
    def theirs() -> tuple[Tensor, Tensor]:
        states = model.vision_model(pixels).last_hidden_state
        model.get_text_features(padded[:own_texts], padded_mask[:own_texts], cls_only=True)
        # Encodes only some images and reuses them as candidates, because any images will do.
        all_states = states.repeat(-(-num_images // own_images), 1, 1)[:num_images]
        return original.rerank(model, all_states, padded, padded_mask, similarity, k, (own_images, own_texts))

    yield Case(
        f"two-stage retrieval, {num_images} images x {num_texts} captions, k = {k}",
        {OURS: ours, "original": theirs},
        targets={"original": 4},
        note=f"{share:.0%} of the queries are timed on both sides",
    )


def pairs_of_first_images(similarity: Tensor, k: int, num_images: int) -> tuple[Tensor, Tensor]:
    """Pairs of the first images in a full evaluation, each once."""
    found = []

    def remember(images: Tensor, texts: Tensor) -> Tensor:
        found.extend([images, texts])
        return torch.zeros(len(images), 2, device=images.device)

    rerank(similarity, k, remember)
    images, texts = found
    return images[images < num_images], texts[images < num_images]


if __name__ == "__main__":
    run("reranking", cases)
