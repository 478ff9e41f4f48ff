# SPDX-License-Identifier: BSD-3-Clause
"""Checks of the sizes in configurations."""

from transformers import PreTrainedConfig


# Highest values of sizes, far above those of any model. Past them a configuration is damaged, or made to exhaust the memory.
_MAX_SIZES = {
    "hidden_size": 2**16,
    "encoder_hidden_size": 2**16,
    "intermediate_size": 2**18,
    "projection_dim": 2**16,
    "image_text_hidden_size": 2**16,
    "num_hidden_layers": 1000,
    "num_attention_heads": 2**10,
    "vocab_size": 10**7,
    "max_position_embeddings": 10**6,
    "image_size": 2**15,
    "patch_size": 2**15,
    "num_channels": 2**10,
}


def check_sizes(config: PreTrainedConfig) -> None:
    """Raises for a size that no model has, before memory is taken for it."""
    for name in _MAX_SIZES.keys() & type(config).__dataclass_fields__.keys():
        value, highest = getattr(config, name), _MAX_SIZES[name]
        for size in value if isinstance(value, (list, tuple)) else [value]:
            if not 1 <= size <= highest:
                raise ValueError(f"{name} is {value}, expected a value from 1 to {highest}.")


def check_heads(config: PreTrainedConfig) -> None:
    """Raises if the attention heads do not divide the width."""
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads {config.num_attention_heads}."
            " Choose a number of heads that divides hidden_size."
        )


__all__ = ["check_heads", "check_sizes"]
