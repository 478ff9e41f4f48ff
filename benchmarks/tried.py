# SPDX-License-Identifier: BSD-3-Clause
"""Optimisations of inference that this package does not use: compilation, int8 weights, packed weights.

Measures greedy captioning as in `caption.py`, and the image encoder alone. Each row changes one thing. int8 requires
`torchao`; packing and fusing require oneDNN on a CPU. Without them, their rows are skipped. Compilation (minutes) and
packing are not timed.
"""

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from blip_hf import BlipConfig, BlipForConditionalGeneration, BlipVisionModel

from .caption import BATCH_SIZE, NUM_TOKENS
from .harness import OURS, Case, Options, Way, run
from .sizes import build, config_fields, random_pixels


ROUNDING = "int8 weights round, so captions may differ."


def cases(options: Options) -> Iterator[Case]:
    """The image encoder in fp32, then captioning of one image and of a batch, in fp32 and bf16."""
    yield image_encoder_case(options)
    for dtype in (torch.float32, torch.bfloat16):
        models = changed_captioners(options, dtype)
        for batch_size in (1, BATCH_SIZE):
            pixels = random_pixels(batch_size, options.size.image_size, options.device).to(dtype)
            yield Case(
                f"caption, greedy, batch {batch_size}, {'fp32' if dtype == torch.float32 else 'bf16'} weights",
                {name: writer(model, pixels, NUM_TOKENS[options.size_name]) for name, model in models.items()},
                dtype=dtype,
                note=ROUNDING,
            )


def image_encoder_case(options: Options) -> Case:
    """The image encoder with channels-last layout and fused activations."""
    config = BlipConfig(**config_fields(options.size)).vision_config
    names = [OURS, "channels last", *(["GELU within the product"] if has_onednn(options) else [])]
    encoders = {name: build(BlipVisionModel, config, options.device) for name in names}
    encoders["channels last"].embeddings.to(memory_format=torch.channels_last)
    for layer in encoders["GELU within the product"].encoder.layers if has_onednn(options) else ():
        fuse_gelu(layer.mlp)
    pixels = random_pixels(BATCH_SIZE, options.size.image_size, options.device)
    ways = {name: partial(encode, encoder, pixels) for name, encoder in encoders.items()}
    laid_out = pixels.contiguous(memory_format=torch.channels_last)
    ways["channels last"] = partial(encode, encoders["channels last"], laid_out)
    return Case(f"image encoder, batch {BATCH_SIZE}, fp32", ways, check=all_close)


@torch.no_grad()
def encode(encoder: BlipVisionModel, pixels: Tensor) -> Tensor:
    """States of the image encoder."""
    return encoder(pixels).last_hidden_state


def all_close(results: dict[str, Tensor]) -> None:
    """Asserts that all states are close."""
    for result in results.values():
        torch.testing.assert_close(result, results[OURS], atol=1e-4, rtol=1e-4)


def has_onednn(options: Options) -> bool:
    """Whether oneDNN's linear layers are available."""
    return options.device.type == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def fuse_gelu(mlp: nn.Module) -> None:
    """Fuses the activation of a feed-forward block with oneDNN's linear layer."""
    mlp.fc1.forward = product(mlp.fc1.weight, mlp.fc1.bias, "gelu")
    mlp.activation_fn = nn.Identity()


def product(weight: Tensor, bias: Tensor | None, activation: str = "none") -> Callable[[Tensor], Tensor]:
    """A linear layer in oneDNN; the weight may be packed."""
    return lambda states: torch.ops.mkldnn._linear_pointwise(states, weight, bias, activation, [], "none")


def changed_captioners(options: Options, dtype: torch.dtype) -> dict[str, BlipForConditionalGeneration]:
    """The model unchanged, compiled, and with int8 or packed decoder weights."""
    names = [OURS, "compiled"]
    names += ["int8 weights"] if importlib.util.find_spec("torchao") else []
    names += ["packed weights"] if has_onednn(options) else []
    config = BlipConfig(**config_fields(options.size))
    models = {name: build(BlipForConditionalGeneration, config, options.device).to(dtype) for name in names}
    compiled = models["compiled"]
    compiled.vision_model.forward = torch.compile(compiled.vision_model.forward)
    compiled.text_decoder.forward = torch.compile(compiled.text_decoder.forward, dynamic=True)
    if "int8 weights" in models:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(models["int8 weights"].text_decoder, Int8WeightOnlyConfig())
    if "packed weights" in models:
        pack(models["packed weights"].text_decoder)
    return models


def pack(decoder: nn.Module) -> None:
    """Adds copies of the decoder's weights in oneDNN's layout for a batch."""
    for module in decoder.modules():
        if isinstance(module, nn.Linear):
            packed = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), BATCH_SIZE)
            module.forward = product(packed, module.bias.detach())


def writer(model: BlipForConditionalGeneration, pixels: Tensor, tokens: int) -> Way:
    """A function that generates exactly `tokens` tokens per image."""
    return lambda: model.generate(
        pixel_values=pixels, do_sample=False, num_beams=1, min_new_tokens=tokens, max_new_tokens=tokens
    )


if __name__ == "__main__":
    run("tried", cases)
