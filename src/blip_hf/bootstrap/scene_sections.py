# SPDX-License-Identifier: BSD-3-Clause
"""Default sections of the loop for drawn scenes."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


# A short schedule for a small model, like that of the demo
_SMALL = MappingProxyType(
    {
        "per_device_train_batch_size": 64,
        "lr_scheduler_type": "cosine",
        "learn_temperature": False,
        "max_grad_norm": 1.0,
        "augment": False,
        "logging_steps": 25,
        "save_steps": 200,
    }
)
_SMALL_CONTRAST = MappingProxyType({**_SMALL, "queue_size": 256, "momentum": 0.98})
SCENE_SECTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "pretrain": {
            **_SMALL_CONTRAST,
            "max_steps": 900,
            "learning_rate": 1e-3,
            "warmup_steps": 60,
            "in_memory": True,
        },
        "captioner": {**_SMALL, "max_steps": 120, "learning_rate": 3e-4, "warmup_steps": 10},
        "filter": {**_SMALL_CONTRAST, "max_steps": 120, "learning_rate": 3e-4, "warmup_steps": 10},
        # A scene has one correct caption, so sampling would only add mistakes.
        "capfilt": {"strategy": "greedy", "max_length": 30, "batch_size": 64},
        "evaluation": {"k_test": 32, "num_beams": 1, "max_length": 30, "min_length": 5},
    }
)


__all__ = ["SCENE_SECTIONS"]
