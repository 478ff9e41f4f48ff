# SPDX-License-Identifier: BSD-3-Clause
"""Trains a WordPiece tokenizer, for models trained from scratch and machines without a network."""

from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer


SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_wordpiece_tokenizer(texts: Iterable[str], *, vocab_size: int = 30_522) -> BertTokenizer:
    """Trains a lower-casing WordPiece tokenizer; the same texts give the same ids.

    `vocab_size` is a maximum. `[PAD]` has id 0. `BlipProcessor.from_bert_tokenizer` adds BLIP's `[DEC]` and `[ENC]`.

    Example:
        >>> tokenizer = train_wordpiece_tokenizer(["a red circle", "two red squares"])
        >>> tokenizer.tokenize("Two reds")
        ['two', 'red', '##s']
    """
    texts = list(texts)
    normalizer = normalizers.BertNormalizer(lowercase=True)
    alphabet = sorted({letter for text in texts for letter in normalizer.normalize_str(text) if not letter.isspace()})
    # The trainer numbers the pieces inside words in random order and breaks ties between merges by number. Passing these
    # pieces makes the ids reproducible.
    fixed_tokens = [*SPECIAL_TOKENS, *(f"##{letter}" for letter in alphabet)]
    smallest_size = len(fixed_tokens) + len(alphabet)
    if not alphabet:
        raise ValueError("`texts` has no visible character; pass at least one word.")
    if vocab_size < smallest_size:
        raise ValueError(
            f"vocab_size={vocab_size} is too small: {len(SPECIAL_TOKENS)} special tokens and two pieces for each of "
            f"{len(alphabet)} characters need at least {smallest_size}."
        )

    trainable = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trainable.normalizer = normalizer
    trainable.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=fixed_tokens, show_progress=False)
    trainable.train_from_iterator(texts, trainer)
    return BertTokenizer(vocab=trainable.get_vocab(), model_max_length=512)


__all__ = ["train_wordpiece_tokenizer"]
