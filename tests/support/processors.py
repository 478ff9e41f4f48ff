# SPDX-License-Identifier: BSD-3-Clause
"""Processors of this package and of transformers with a vocabulary of 20 words, and images for them."""

import numpy as np
import transformers
from PIL import Image
from transformers import BertTokenizer, BlipImageProcessorPil

from blip_hf.processing_blip import BlipProcessor


WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("a", "picture", "of", "dog", "cat", "two", "dogs", "on", "the", "beach", "photo", "big", "red", ",", "##s"),
]
PAD, CLS, SEP = 0, 2, 3
DEC, ENC = len(WORDS), len(WORDS) + 1
SIZE = {"height": 32, "width": 32}


def plain_tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})


def make_processor() -> BlipProcessor:
    return BlipProcessor.from_bert_tokenizer(plain_tokenizer(), image_size=32)


def make_upstream() -> transformers.BlipProcessor:
    return transformers.BlipProcessor(BlipImageProcessorPil(size=SIZE), plain_tokenizer())


def ids_of(words: str) -> list[int]:
    return [WORDS.index(word) for word in words.split()]


def random_photo(seed: int = 0, size: tuple[int, int] = (50, 70)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))
