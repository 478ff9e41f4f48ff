# SPDX-License-Identifier: BSD-3-Clause
"""Matching of one image with many captions, compared with transformers and salesforce/BLIP."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.testing import assert_close

from blip_hf import BlipConfig, BlipForImageTextRetrieval

from . import original
from .harness import OURS, Case, Options, run
from .sizes import build, config_fields, pad_to, random_captions, random_pixels, upstream_model


NUM_CAPTIONS = {"base": 64, "small": 32, "tiny": 4}
CAPTION_LENGTH = 12


def cases(options: Options) -> Iterator[Case]:
    """One case, with [CLS] as first token as in transformers."""
    size, device, count = options.size, options.device, NUM_CAPTIONS[options.size_name]
    ours = build(BlipForImageTextRetrieval, BlipConfig(**config_fields(size), itm_start_token="cls"), device)
    upstream = upstream_model(ours)
    pixels = random_pixels(1, size.image_size, device)
    captions = random_captions(count, CAPTION_LENGTH, size, device)
    mask = torch.ones_like(captions)
    padded, padded_mask = pad_to(captions, original.RETRIEVAL_LENGTH)

    @torch.no_grad()
    def match_once() -> Tensor:
        return ours(captions, pixels, attention_mask=mask).itm_logits

    @torch.no_grad()
    def match_pairs() -> Tensor:
        # transformers pairs texts with images one to one, so the image is repeated.
        return upstream(captions, pixels.repeat(count, 1, 1, 1), attention_mask=mask).itm_score

    @torch.no_grad()
    def match_copies() -> Tensor:
        states = ours.vision_model(pixels).last_hidden_state
        return original.match(ours, states.repeat(count, 1, 1), padded, padded_mask)

    yield Case(
        f"match one image against {count} captions, {size.image_size} px, {CAPTION_LENGTH} tokens",
        {OURS: match_once, "transformers": match_pairs, "original": match_copies},
        targets={"transformers": 15, "original": 4},
        check=same_as_transformers,
        note="salesforce/BLIP starts texts with [ENC] and has other scores; tests compare them.",
    )


def same_as_transformers(results: Mapping[str, Tensor]) -> None:
    """Asserts that scores equal those of transformers."""
    assert_close(results[OURS], results["transformers"], atol=1e-4, rtol=1e-4)


if __name__ == "__main__":
    run("matching", cases)
