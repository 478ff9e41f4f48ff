# SPDX-License-Identifier: BSD-3-Clause
"""Tokenizers and processors over a few words."""

from collections.abc import Sequence

from transformers import BertTokenizer

from blip_hf import BlipProcessor
from blip_hf.data.scenes import scene_vocabulary_texts
from blip_hf.data.vocabulary import train_wordpiece_tokenizer


SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = tuple("abcdefghijklmnopqr")


def make_tokenizer(words: Sequence[str] = LETTERS) -> BertTokenizer:
    """A BERT tokenizer with the special tokens as ids 0 to 4, then `words`."""
    return BertTokenizer(vocab={token: index for index, token in enumerate((*SPECIAL_TOKENS, *words))})


def make_processor(words: Sequence[str] = LETTERS, image_size: int = 32) -> BlipProcessor:
    return BlipProcessor.from_bert_tokenizer(make_tokenizer(words), image_size=image_size)


def make_scene_processor() -> BlipProcessor:
    """A processor over the words of drawn scenes."""
    return BlipProcessor.from_bert_tokenizer(train_wordpiece_tokenizer(scene_vocabulary_texts()), image_size=32)
