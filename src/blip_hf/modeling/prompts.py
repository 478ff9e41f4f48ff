# SPDX-License-Identifier: BSD-3-Clause
"""Generation settings, and batches of prompts of different lengths, with the same results as one prompt at a time."""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ..configuration_blip import BlipTextConfig
from .input_checks import refuse_long_text


def resolve_settings(
    settings: GenerationConfig, options: dict[str, Any], config: BlipTextConfig
) -> tuple[GenerationConfig, dict[str, Any]]:
    """Returns the settings of one call of `generate`, and the options that are not settings.

    `options` override `settings`, which are not changed. A text ends with [SEP] unless other end tokens are chosen.
    """
    settings = copy.deepcopy(settings)
    if settings.eos_token_id == config.eos_token_id:
        # Copied from the model's configuration, not chosen by a user; released files have a wrong one.
        settings.eos_token_id = None
    settings.update(bos_token_id=config.bos_token_id, pad_token_id=config.pad_token_id)
    remaining = settings.update(**options)
    if settings.eos_token_id is None:
        settings.eos_token_id = config.sep_token_id
    if settings.max_new_tokens is None and settings.max_length is None:
        # The default of transformers, which `generate` would apply with a warning.
        settings.max_new_tokens = settings._get_default_generation_params()["max_length"]
    return settings, remaining


def unset_library_defaults(settings: GenerationConfig) -> None:
    """Unsets, in place, the defaults of transformers in settings that were read from a model's configuration.

    Up to version 4, transformers wrote its generation defaults into each `config.json`, including those of the released
    checkpoints, and it reads them back as if a user had chosen them.
    """
    if settings._from_model_config:
        for name, default in settings._get_default_generation_params().items():
            if getattr(settings, name, None) == default:
                setattr(settings, name, None)


def align_prompts(input_ids: Tensor, attention_mask: Tensor | None, config: BlipTextConfig) -> tuple[Tensor, Tensor]:
    """Converts prompts of a processor to those that the decoder continues: [DEC] first, no [SEP], padded on the left.

    Returns ids and mask, each of shape `(b, longest)`. `input_ids` `(b, t)` may be padded on either side.

    Example:
        >>> config = BlipTextConfig(pad_token_id=0, sep_token_id=3, bos_token_id=9)
        >>> align_prompts(torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]]), None, config)
        (tensor([[9, 5, 6],
                [0, 9, 7]]), tensor([[1, 1, 1],
                [0, 1, 1]]))
    """
    if attention_mask is None:
        attention_mask = input_ids != config.pad_token_id
    keep = attention_mask.bool() & (input_ids != config.sep_token_id)  # (b, t)
    longest = int(keep.sum(dim=1).max())
    # A stable sort by "is kept" moves the dropped tokens to the front and keeps the order of the others.
    order = keep.long().argsort(dim=1, stable=True)[:, input_ids.shape[1] - longest :]
    keep = keep.gather(1, order)
    is_first = keep & (keep.cumsum(dim=1) == 1)
    prompts = input_ids.gather(1, order).masked_fill(~keep, config.pad_token_id)
    return prompts.masked_fill(is_first, config.bos_token_id), keep.long()


def start_tokens(images: Tensor, config: BlipTextConfig) -> Tensor:
    """Returns [DEC] for each image or question, given a tensor of shape `(n, ...)`: `(n, 1)`."""
    return torch.full((images.shape[0], 1), config.bos_token_id, device=images.device)


def refuse_long_generation(settings: GenerationConfig, num_prompt: int, config: BlipTextConfig) -> None:
    """Raises `ValueError` if a prompt, or what `settings` allow after it, is longer than the position embeddings.

    Call it after `limit_each_row`: rows that end early still run with the others.
    """
    refuse_long_text(num_prompt, config)
    if settings.max_new_tokens is None:
        option, length = "max_length", settings.max_length
    else:
        option, length = "max_new_tokens", num_prompt + settings.max_new_tokens
    limit = config.max_position_embeddings
    if length - 1 > limit:  # the last token is not read
        raise ValueError(
            f"text has up to {length - 1} tokens (a prompt of {num_prompt} and those that {option} allows), the model takes"
            f" at most {limit}. Truncate the prompt, or lower {option}."
        )


def limit_each_row(
    settings: GenerationConfig, num_padding: Tensor
) -> tuple[LogitsProcessorList, StoppingCriteriaList]:
    """Makes `max_length` and `min_length` count the tokens of each row without its `num_padding`, of shape `(b,)`.

    Returns processors and criteria for `generate`, and raises `settings.max_length` in place to make room for the
    padding.
    """
    processors, criteria = LogitsProcessorList(), StoppingCriteriaList()
    longest = int(num_padding.max())
    if longest == 0:
        return processors, criteria
    if settings.max_length is not None and settings.max_new_tokens is None:
        criteria.append(MaxLengthOfRows(settings.max_length + num_padding))
        settings.max_length += longest
    if settings.min_length and settings.min_new_tokens is None:
        ends = settings.eos_token_id
        end_ids = [ends] if isinstance(ends, int) else ends
        processors.append(MinLengthOfRows(settings.min_length + num_padding, end_ids))
    return processors, criteria


class MaxLengthOfRows(StoppingCriteria):
    """Stops each row, with all its beams, at its own length: `lengths` of shape `(b,)`, padding included."""

    def __init__(self, lengths: Tensor) -> None:
        self.lengths = lengths

    def __call__(self, input_ids: Tensor, scores: Tensor | None, **kwargs: object) -> Tensor:
        """Returns whether each row is done: `(rows, t)` -> `(rows,)`."""
        return input_ids.shape[1] >= _for_beams(self.lengths, input_ids)


class MinLengthOfRows(LogitsProcessor):
    """Forbids `end_ids` until a row has its own length: `lengths` of shape `(b,)`, padding included."""

    def __init__(self, lengths: Tensor, end_ids: list[int]) -> None:
        self.lengths = lengths
        self.end_ids = end_ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Masks the scores of the next token: `(rows, v)` -> `(rows, v)`."""
        is_short = input_ids.shape[1] < _for_beams(self.lengths, input_ids)  # (rows,)
        scores = scores.clone()
        for end_id in self.end_ids:  # indexing by a list would copy it to the device at each token
            scores[:, end_id] = scores[:, end_id].masked_fill(is_short, -torch.inf)
        return scores


def _for_beams(lengths: Tensor, input_ids: Tensor) -> Tensor:
    return lengths.to(input_ids.device).repeat_interleave(input_ids.shape[0] // lengths.shape[0])


__all__ = [
    "MaxLengthOfRows",
    "MinLengthOfRows",
    "align_prompts",
    "limit_each_row",
    "refuse_long_generation",
    "resolve_settings",
    "start_tokens",
    "unset_library_defaults",
]
