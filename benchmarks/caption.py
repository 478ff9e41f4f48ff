# SPDX-License-Identifier: BSD-3-Clause
"""Generation of captions of 20 tokens: three beams and greedy, compared with transformers, and bf16 with fp32.

Weights are random, so the length is fixed.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from blip_hf import BlipConfig, BlipForConditionalGeneration

from .harness import OURS, Case, Options, run
from .sizes import build, config_fields, random_pixels, upstream_model


NUM_TOKENS = {"base": 20, "small": 20, "tiny": 4}
BATCH_SIZE = 8
UPSTREAM = "transformers"


def cases(options: Options) -> Iterator[Case]:
    """Three beams, greedy with two batch sizes in fp32, then bf16 against fp32."""
    size, device = options.size, options.device
    ours = build(BlipForConditionalGeneration, BlipConfig(**config_fields(size)), device)
    upstream = upstream_model(ours)
    half = build(BlipForConditionalGeneration, BlipConfig(**config_fields(size)), device).to(torch.bfloat16)
    tokens = NUM_TOKENS[options.size_name]

    def writer(model: torch.nn.Module, pixels: Tensor, num_beams: int) -> object:
        pixels = pixels.to(model.dtype)
        return lambda: model.generate(
            pixel_values=pixels, num_beams=num_beams, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens
        )

    for num_beams, batch_size, target in ((3, BATCH_SIZE, 2.5), (1, 1, 1.0), (1, BATCH_SIZE, 1.1)):
        pixels = random_pixels(batch_size, size.image_size, device)
        yield Case(
            f"caption, {num_beams} beam(s), batch {batch_size}, {size.image_size} px, {tokens} tokens",
            {OURS: writer(ours, pixels, num_beams), UPSTREAM: writer(upstream, pixels, num_beams)},
            targets={UPSTREAM: target},
            check=same_captions,
        )
    yield Case(
        f"caption, greedy, batch {BATCH_SIZE}, bf16 weights",
        {OURS: writer(half, pixels, 1), "fp32 weights": writer(ours, pixels, 1)},
        targets={"fp32 weights": 1.6},
        dtype=torch.bfloat16,
    )


def same_captions(results: Mapping[str, Tensor]) -> None:
    """Asserts that captions are equal; one row of eight may differ by a tie."""
    same = (results[OURS] == results[UPSTREAM]).all(dim=1)
    assert same.sum() >= len(same) - len(same) // BATCH_SIZE, "captions differ"


if __name__ == "__main__":
    run("caption", cases)
