# SPDX-License-Identifier: BSD-3-Clause
"""Tiny random models, their batches and configurations."""

import json

import torch

from blip_hf import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipPreTrainingConfig,
    BlipRetrievalTrainingConfig,
    BlipVisualReasoningConfig,
)
from tests.support.vocabularies import make_processor


VOCAB_SIZE = 40
PAD, CLS, SEP, DEC, ENC = 0, 2, 3, 38, 39

TEXT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": PAD,
    "cls_token_id": CLS,
    "sep_token_id": SEP,
    "eos_token_id": SEP,
    "bos_token_id": DEC,
    "enc_token_id": ENC,
    "initializer_range": 0.3,  # large, so that a wrong term changes the output
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
    "initializer_range": 0.3,
}


# Another order of summation changes a logit of a tiny model by a few ulp.
SUMMATION_TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}


def tiny_config(**fields):
    return BlipConfig(text_config=dict(TEXT), vision_config=dict(VISION), image_text_hidden_size=8, **fields)


def tiny_pretraining_config(queue_size=12, **fields):
    return BlipPreTrainingConfig(
        text_config=dict(TEXT), vision_config=dict(VISION), image_text_hidden_size=8, queue_size=queue_size, **fields
    )


def tiny_retrieval_config(queue_size=12, **fields):
    return BlipRetrievalTrainingConfig(
        text_config=dict(TEXT), vision_config=dict(VISION), image_text_hidden_size=8, queue_size=queue_size, **fields
    )


def tiny_nlvr2_config(merge_from_layer=1):
    """By default the lower text layer averages both images and the upper one merges them."""
    return BlipVisualReasoningConfig(
        text_config=dict(TEXT), vision_config=dict(VISION), image_text_hidden_size=8, merge_from_layer=merge_from_layer
    )


def seeded_generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny_batch(lengths=(7, 5, 6), first=CLS, seed=0):
    """Returns pixels, right-padded captions that end with [SEP], and their mask."""
    generator = torch.Generator().manual_seed(seed)
    pixel_values = torch.randn(len(lengths), 3, 32, 32, generator=generator)
    input_ids = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in zip(input_ids, lengths, strict=True):
        row[:length] = torch.randint(4, DEC, (length,), generator=generator)
        row[0], row[length - 1] = first, SEP
    return {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": (input_ids != PAD).long()}


def tiny_model_for(model_class, processor, seed=0, **fields):
    """Returns a tiny model with the vocabulary of a processor; `fields` go into both sub-configurations."""
    config = BlipConfig(
        text_config={**TEXT, **processor.config_token_ids(), **fields},
        vision_config={**VISION, "image_size": processor.image_processor.size["height"], **fields},
        image_text_hidden_size=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model_class(config).eval()


def tiny_capfilt(image_size=32):
    """Returns a captioner and a filter, each with its processor, over a vocabulary of letters."""
    processor = make_processor(image_size=image_size)
    captioner = tiny_model_for(BlipForConditionalGeneration, processor, seed=2, initializer_range=0.5)
    matcher = tiny_model_for(BlipForImageTextRetrieval, processor, seed=3, initializer_range=0.5)
    # As a trained model, it generates no special token except [SEP].
    unwanted = [number for number in processor.tokenizer.all_special_ids if number != processor.tokenizer.sep_token_id]
    captioner.text_decoder.cls.predictions.bias.data[unwanted] = -100
    return captioner, processor, matcher, processor


# The default generation settings that transformers 4 wrote into every sub-configuration, as in the released files.
LEGACY_GENERATION = {
    "bad_words_ids": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_scores": False,
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict_in_generate": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
}


def write_as_transformers_4(folder, **text_fields):
    """Rewrites the configuration of a saved captioner as transformers 4 saved it."""
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    settings["text_config"] |= (
        LEGACY_GENERATION | {"eos_token_id": 2, "transformers_version": "4.26.0.dev0"} | text_fields
    )
    path.write_text(json.dumps(settings))
    (folder / "generation_config.json").unlink()
