# SPDX-License-Identifier: BSD-3-Clause
"""Ablation of the optimisations: each job with all of them, and with all but one.

Each ablation patches one function. Ratios are of time; compare peak memory too. This module or
`tests/modeling/test_savings.py` checks that results are equal.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.testing import assert_close
from transformers.modeling_outputs import BaseModelOutputWithPooling

from blip_hf import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForPreTraining,
    BlipTextModel,
)
from blip_hf.modeling import contrastive, cpu, text_layers
from blip_hf.modeling.attention import ImageMemory, attend_grouped

from . import original
from .caption import BATCH_SIZE, NUM_TOKENS
from .harness import OURS, Case, Options, Way, run
from .matching import CAPTION_LENGTH, NUM_CAPTIONS
from .pretraining_step import ALPHA, PROBLEMS, Steps
from .sizes import build, config_fields, random_captions, random_pixels


# Five rounds do not resolve differences of a few percent.
MORE_ROUNDS = 3


def cases(options: Options) -> Iterator[Case]:
    """Parts of a pre-training step, a whole step, matching, and captioning."""
    yield from updates(options)
    yield text_passes(options)
    yield pretraining(options)
    yield matching(options)
    yield from captions(options)


def updates(options: Options) -> Iterator[Case]:
    """AdamW and the EMA update."""
    steps = Steps(options, *PROBLEMS[options.size_name], torch.float32)
    steps.ours()
    model = steps.model
    ways = {OURS: steps.fused.step, "AdamW one by one": steps.plain.step}
    yield Case("AdamW", ways, more_rounds=MORE_ROUNDS)
    ways = {OURS: model.update_momentum, "EMA one by one": partial(original.update_momentum_encoder, model)}
    yield Case("EMA update", ways, more_rounds=MORE_ROUNDS)


def text_passes(options: Options) -> Case:
    """Losses of a step and their gradients, with precomputed image states."""
    steps = Steps(options, *PROBLEMS[options.size_name], torch.float32)
    model = BlipForPreTraining
    leave_out_images(steps)
    learn = partial(differentiate, steps, steps.captions, steps.mask)
    ways = {
        "captions padded to 30": partial(differentiate, steps, steps.padded, steps.padded_mask),
        "matching in two passes": without(partial(patch.object, model, "_match", match_in_two_passes), learn),
        "keys and values anew for captions": without(memory_for_captions, learn),
        "all positions in the last layer": without(all_positions, learn),
        "words looked up role by role": without(partial(patch.object, model, "_embed_words", embed_by_role), learn),
        "copies of the queue": without(partial(patch.object, contrastive, "_similarities", to_one_copy), learn),
    }
    return Case("text passes of a pre-training step, fp32", {OURS: learn, **ways}, more_rounds=MORE_ROUNDS)


def leave_out_images(steps: Steps) -> None:
    """Replaces both image encoders by random states; those of the trained encoder require grad."""
    encoders = steps.model.vision_model, steps.model.momentum_towers.vision_model
    with torch.no_grad():
        shape = encoders[0](steps.pixels).last_hidden_state.shape
    for encoder, has_gradient in zip(encoders, (True, False), strict=True):
        states = torch.randn(shape, device=steps.pixels.device, requires_grad=has_gradient)
        output = BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=states[:, 0])
        encoder.forward = lambda *_, output=output, **__: output


def differentiate(steps: Steps, captions: Tensor, mask: Tensor) -> None:
    """A forward and a backward pass."""
    steps.model.zero_grad()
    steps.model(steps.pixels, captions, mask, alpha=ALPHA).loss.backward()


def pretraining(options: Options) -> Case:
    """A whole step in fp32."""
    steps = Steps(options, *PROBLEMS[options.size_name], torch.float32)
    ways = {OURS: steps.ours, "nothing recomputed": without(original.nothing_recomputed, steps.ours)}
    return Case("pre-training step, fp32", ways, prepare_memory=steps.keep_gradients)


def matching(options: Options) -> Case:
    """One image against many captions."""
    size, count = options.size, NUM_CAPTIONS[options.size_name]
    model = build(BlipForImageTextRetrieval, BlipConfig(**config_fields(size)), options.device)
    pixels = random_pixels(1, size.image_size, options.device)
    captions = random_captions(count, CAPTION_LENGTH, size, options.device)

    @torch.no_grad()
    def match() -> Tensor:
        return model(captions, pixels, attention_mask=torch.ones_like(captions)).itm_logits

    ways = {
        "keys and values copied for each caption": without(copied_memory, match),
        "all positions in the last layer": without(all_positions, match),
    }
    name = f"match one image against {count} captions"
    return Case(name, {OURS: match, **ways}, check=all_close, more_rounds=MORE_ROUNDS)


def captions(options: Options) -> Iterator[Case]:
    """Three beams in fp32, then greedy in bf16."""
    size, tokens = options.size, NUM_TOKENS[options.size_name]
    config = BlipConfig(**config_fields(size))
    for num_beams, dtype in ((3, torch.float32), (1, torch.bfloat16)):
        model = build(BlipForConditionalGeneration, config, options.device).to(dtype)
        pixels = random_pixels(BATCH_SIZE, size.image_size, options.device).to(dtype)
        limits = {"min_new_tokens": tokens, "max_new_tokens": tokens}
        write = partial(model.generate, pixels, num_beams=num_beams, do_sample=False, **limits)
        if dtype == torch.float32:
            ways = {
                "keys and values copied for each beam": without(copied_memory, write),
                "linear layers of torch": without(
                    partial(patch.object, cpu, "_can_use_onednn", lambda *_: False), write
                ),
            }
        else:
            never = partial(patch.object, cpu, "use_matmul_attention", lambda *_: False)
            ways = {"fused attention": without(never, write)}
        name = "fp32" if dtype == torch.float32 else "bf16 weights"
        yield Case(f"caption, {num_beams} beam(s), batch {BATCH_SIZE}, {name}", {OURS: write, **ways}, dtype=dtype)


def without(change: Callable[[], AbstractContextManager], way: Way) -> Way:
    """The implementation under a patch."""

    def changed() -> Any:
        with change():
            return way()

    return changed


def all_close(results: Mapping[str, Tensor]) -> None:
    """Asserts that all scores are close."""
    for result in results.values():
        assert_close(result, results[OURS], atol=1e-4, rtol=1e-4)


# ---- Patches


def all_positions() -> AbstractContextManager:
    """The last layer computes all positions."""
    forward = BlipTextModel.forward

    def whole(self: BlipTextModel, *arguments: Any, cls_only: bool = False, **kwargs: Any) -> Any:
        return forward(self, *arguments, **kwargs)

    return patch.object(BlipTextModel, "forward", whole)


def attend_copies(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> Tensor:
    """Cross-attention with a copy of the image's keys and values for each row."""
    count = len(query) // len(key)
    copied = (None if states is None else states.repeat_interleave(count, dim=0) for states in (key, value, mask))
    return attend_grouped(module, query, *copied, **options)


def copied_memory() -> AbstractContextManager:
    """Keys and values are copied for each row of an image."""
    return patch.object(text_layers, "attend_grouped", attend_copies)


def match_in_two_passes(
    self: BlipForPreTraining, memory: ImageMemory, words: Tensor, attention_mask: Tensor, *drawn_from: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Matching with separate passes of positives and negatives."""
    (hard_texts, has_text), (hard_images, has_image) = self._draw_negatives(*drawn_from)
    matched = self._score_pairs(memory, words, attention_mask, None)
    texts = torch.cat([hard_texts, torch.arange(len(words), device=words.device)])
    with_hard_text, with_hard_image = self._score_pairs(
        memory, words[texts], attention_mask[texts], hard_images
    ).chunk(2)
    itm_logits = torch.cat([torch.stack([matched, with_hard_text], dim=1).flatten(0, 1), with_hard_image])
    return self._itm_loss_and_labels(itm_logits, has_text, has_image)


@contextmanager
def memory_for_captions() -> Iterator[None]:
    """Images are projected separately for matching and captioning."""
    build_memory, caption, states = BlipTextModel.build_image_memory, BlipForPreTraining._caption, []

    def remember(self: BlipTextModel, encoder_hidden_states: Tensor) -> ImageMemory:
        states[:] = [encoder_hidden_states]
        return build_memory(self, encoder_hidden_states)

    def caption_anew(self: BlipForPreTraining, _: ImageMemory, *arguments: Tensor) -> tuple[Tensor, Tensor]:
        return caption(self, build_memory(self.text_decoder.bert, *states), *arguments)

    with (
        patch.object(BlipTextModel, "build_image_memory", remember),
        patch.object(BlipForPreTraining, "_caption", caption_anew),
    ):
        yield


def embed_by_role(self: BlipForPreTraining, input_ids: Tensor, *first_tokens: int) -> tuple[Tensor, ...]:
    """A separate embedding lookup, and gradient, for each role."""
    look_up = self.get_input_embeddings()
    return look_up(input_ids), *(look_up(contrastive.with_first_token(input_ids, token)) for token in first_tokens)


def to_one_copy(queries: Tensor, keys: Tensor, queue: Tensor) -> Tensor:
    """Similarities to a concatenated copy of keys and queue."""
    return queries @ torch.cat([keys, queue.to(keys.dtype)]).T


if __name__ == "__main__":
    run("savings", cases)
