# SPDX-License-Identifier: BSD-3-Clause
"""Settings of generation, and prompts of unequal length in one batch: each is to be continued as it would be alone."""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ..configuration_blip import BlipTextConfig
from .attention import ImageMemory


# Length of a text where neither the caller nor the checkpoint says: what transformers falls back to, with a warning.
DEFAULT_MAX_NEW_TOKENS = 20


def resolve_settings(
    settings: GenerationConfig, options: dict[str, Any], config: BlipTextConfig
) -> tuple[GenerationConfig, dict[str, Any]]:
    """Settings of one call of `generate`: the given ones, the options that win over them, and BLIP's special tokens.

    Args:
        settings (`GenerationConfig`):
            The caller's or the model's own. Not changed.
        options (`dict`):
            Keyword arguments of the call.
        config (`BlipTextConfig`):
            Whose tokens these are: a text ends with [SEP] where no other end tokens are chosen.

    Returns:
        `tuple`: the settings, and the options that are none and go on to the decoder's `generate`.
    """
    settings = copy.deepcopy(settings)
    if settings.eos_token_id == config.eos_token_id:
        # Read off the model's configuration and chosen by nobody; released files hold a wrong one.
        settings.eos_token_id = None
    settings.update(bos_token_id=config.bos_token_id, pad_token_id=config.pad_token_id)
    remaining = settings.update(**options)
    if settings.eos_token_id is None:
        settings.eos_token_id = config.sep_token_id
    if settings.max_new_tokens is None and settings.max_length is None:
        settings.max_new_tokens = DEFAULT_MAX_NEW_TOKENS
    return settings, remaining


def unset_library_defaults(settings: GenerationConfig) -> None:
    """Unsets what only repeats transformers' defaults, where settings were made of a model's configuration.

    Up to version 4, transformers wrote its defaults of generation into each `config.json`, those of the released
    checkpoints among them, and it reads them back as if someone had chosen them.

    Args:
        settings (`GenerationConfig`):
            As loaded. Changed in place.
    """
    if settings._from_model_config:
        for name, default in settings._get_default_generation_params().items():
            if getattr(settings, name, None) == default:
                setattr(settings, name, None)


def align_prompts(input_ids: Tensor, attention_mask: Tensor | None, config: BlipTextConfig) -> tuple[Tensor, Tensor]:
    """Prompts as the decoder continues them: without [SEP], [DEC] first, padded on the left.

    Args:
        input_ids (`torch.Tensor` of shape `(b, t)`):
            Prompts as a processor gives them: [CLS] first, [SEP] last, padded on either side. Not changed.
        attention_mask (`torch.Tensor` of shape `(b, t)`, *optional*):
            0 for padding.
        config (`BlipTextConfig`):
            Whose tokens these are.

    Returns:
        `tuple`: ids and mask, each of shape `(b, longest)`.

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
    # A stable sort on "is kept" moves the dropped tokens to the front and leaves the order of the others.
    order = keep.long().argsort(dim=1, stable=True)[:, input_ids.shape[1] - longest :]
    keep = keep.gather(1, order)
    is_first = keep & (keep.cumsum(dim=1) == 1)
    prompts = input_ids.gather(1, order).masked_fill(~keep, config.pad_token_id)
    return prompts.masked_fill(is_first, config.bos_token_id), keep.long()


def start_tokens(memory: ImageMemory, config: BlipTextConfig) -> Tensor:
    """[DEC] for each image, or question, of a memory: `(n, 1)`."""
    return torch.full((memory.num_images, 1), config.bos_token_id, device=memory.keys[0].device)


def limit_each_row(
    settings: GenerationConfig, num_padding: Tensor
) -> tuple[LogitsProcessorList, StoppingCriteriaList]:
    """Makes `max_length` and `min_length` count each row's own tokens and not its padding.

    Args:
        settings (`GenerationConfig`):
            Changed in place: its `max_length` is raised to leave room for the padding.
        num_padding (`torch.Tensor` of shape `(b,)`):
            Tokens of padding before each prompt.

    Returns:
        `tuple`: what `generate` is to be given beside the settings.
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
    """Stops each row at a length of its own.

    Args:
        lengths (`torch.Tensor` of shape `(b,)`):
            Tokens a row, padding included; beams of one row share it.
    """

    def __init__(self, lengths: Tensor) -> None:
        self.lengths = lengths

    def __call__(self, input_ids: Tensor, scores: Tensor | None, **kwargs: object) -> Tensor:
        """Whether each row is done: `(rows, t)` -> `(rows,)`."""
        return input_ids.shape[1] >= _for_beams(self.lengths, input_ids)


class MinLengthOfRows(LogitsProcessor):
    """Forbids the end of a caption until its row has a length of its own.

    Args:
        lengths (`torch.Tensor` of shape `(b,)`):
            Tokens a row, padding included; beams of one row share it.
        end_ids (`list[int]`):
            The tokens that end a caption.
    """

    def __init__(self, lengths: Tensor, end_ids: list[int]) -> None:
        self.lengths = lengths
        self.end_ids = end_ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores of the next token: `(rows, v)` -> `(rows, v)`."""
        is_short = input_ids.shape[1] < _for_beams(self.lengths, input_ids)  # (rows,)
        scores = scores.clone()
        for end_id in self.end_ids:  # a list as an index would be copied to the device at each token
            scores[:, end_id] = scores[:, end_id].masked_fill(is_short, -torch.inf)
        return scores


def _for_beams(lengths: Tensor, input_ids: Tensor) -> Tensor:
    return lengths.repeat_interleave(len(input_ids) // len(lengths))


__all__ = [
    "MaxLengthOfRows",
    "MinLengthOfRows",
    "align_prompts",
    "limit_each_row",
    "resolve_settings",
    "start_tokens",
    "unset_library_defaults",
]
