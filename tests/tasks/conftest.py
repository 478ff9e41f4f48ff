# SPDX-License-Identifier: BSD-3-Clause
"""A checkpoint that all tasks start from."""

from pathlib import Path

import pytest

from blip_hf import BlipForPreTraining, BlipPreTrainingConfig, BlipProcessor
from blip_hf.data.scenes import scene_vocabulary_texts
from blip_hf.data.vocabulary import train_wordpiece_tokenizer


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training checkpoint of random weights with its processor. Do not write into it."""
    folder = tmp_path_factory.mktemp("pretrained")
    tokenizer = train_wordpiece_tokenizer([*scene_vocabulary_texts(), "a picture of"])
    processor = BlipProcessor.from_bert_tokenizer(tokenizer, image_size=32)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BlipPreTrainingConfig(
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
        text_config={**sizes, **processor.config_token_ids()},
        image_text_hidden_size=8,
        queue_size=8,
    )
    BlipForPreTraining(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
