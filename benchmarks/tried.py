# SPDX-License-Identifier: BSD-3-Clause
"""What makes decoding faster elsewhere and is no part of this package: compiled steps, int8 weights.

Greedy captions as in `caption.py`. Each way is the package's own model with one thing done to it, as a user would do it.
int8 needs `torchao`, and its row is left out without it. Compilation happens before the clock starts, and takes minutes.
"""

import importlib.util
from collections.abc import Iterator

import torch

from blip_hf import BlipConfig, BlipForConditionalGeneration

from .caption import BATCH_SIZE, NUM_TOKENS
from .harness import OURS, Case, Options, Way, run
from .sizes import build, config_fields, random_pixels


def cases(options: Options) -> Iterator[Case]:
    """One image, and a batch, in fp32 and in bf16."""
    for dtype in (torch.float32, torch.bfloat16):
        models = changed_models(options, dtype)
        for batch_size in (1, BATCH_SIZE):
            pixels = random_pixels(batch_size, options.size.image_size, options.device).to(dtype)
            yield Case(
                f"caption, greedy, batch {batch_size}, {'fp32' if dtype == torch.float32 else 'bf16'} weights",
                {name: writer(model, pixels, NUM_TOKENS[options.size_name]) for name, model in models.items()},
                dtype=dtype,
                note="int8 weights round, so that captions may differ.",
            )


def changed_models(options: Options, dtype: torch.dtype) -> dict[str, BlipForConditionalGeneration]:
    """The model as it is, with compiled towers, and with the decoder's weights in int8."""
    names = [OURS, "compiled", *(["int8 weights"] if importlib.util.find_spec("torchao") else [])]
    config = BlipConfig(**config_fields(options.size))
    models = {name: build(BlipForConditionalGeneration, config, options.device).to(dtype) for name in names}
    compiled = models["compiled"]
    compiled.vision_model.forward = torch.compile(compiled.vision_model.forward)
    compiled.text_decoder.forward = torch.compile(compiled.text_decoder.forward, dynamic=True)
    if "int8 weights" in models:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(models["int8 weights"].text_decoder, Int8WeightOnlyConfig())
    return models


def writer(model: BlipForConditionalGeneration, pixels: torch.Tensor, tokens: int) -> Way:
    """Greedy writing of just so many tokens."""
    return lambda: model.generate(
        pixel_values=pixels, do_sample=False, num_beams=1, min_new_tokens=tokens, max_new_tokens=tokens
    )


if __name__ == "__main__":
    run("tried", cases)
