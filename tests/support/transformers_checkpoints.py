# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints of this package opened by the classes of transformers."""

from pathlib import Path

import transformers

from blip_hf import BlipProcessor
from tests.support.images import plain_image


def load_in_transformers(class_name: str, folder: Path) -> transformers.PreTrainedModel:
    """Loads a checkpoint by a class of transformers, which has to find all its weights and no other."""
    model, info = getattr(transformers, class_name).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model


def captions_in_transformers(folder: Path) -> list[str]:
    """Returns the caption that transformers writes for a grey image after "a picture of"."""
    model = load_in_transformers("BlipForConditionalGeneration", folder)
    processor = BlipProcessor.from_pretrained(folder)
    inputs = processor(plain_image("grey"), "a picture of", return_tensors="pt")
    return processor.post_process_captions(model.generate(**inputs, max_new_tokens=3))
