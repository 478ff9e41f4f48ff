# SPDX-License-Identifier: BSD-3-Clause
"""Tokenizers trained on a few texts."""

import json

import pytest
from transformers import BertTokenizer

from blip_hf.data.scenes import Scenes, scene_vocabulary_texts
from blip_hf.data.vocabulary import train_wordpiece_tokenizer
from tests.support.processes import run_code


TEXTS = ["a small dog runs", "two dogs run on the grass", "Étranges photographs of 12 birds?"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece_tokenizer(scene_vocabulary_texts())


def test_special_tokens_come_first(tokenizer):
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.pad_token_id == 0
    assert tokenizer("a star").input_ids == [2, *tokenizer.convert_tokens_to_ids(["a", "star"]), 3]


def test_scenes_never_need_the_unknown_token(tokenizer):
    scenes = Scenes(1_000)
    texts = [*scenes.captions(), "a picture of a red ring"]
    for i in range(len(scenes)):
        texts += [text for pair in scenes.questions(i) for text in pair.values()]
    texts += [scenes.nlvr2_record(i)["sentence"] for i in range(100)]
    vocabulary = tokenizer.get_vocab()
    words = {word for text in texts for word in text.replace("?", " ?").split()}
    assert words <= set(vocabulary)  # whole words, not only known pieces
    assert not any(tokenizer.unk_token_id in ids for ids in tokenizer(texts).input_ids)


def test_decoding_gives_the_caption_back(tokenizer):
    captions = Scenes(200).captions()
    assert tokenizer.batch_decode(tokenizer(captions).input_ids, skip_special_tokens=True) == captions


def test_scene_vocabulary_is_small():
    assert len({word for text in scene_vocabulary_texts() for word in text.rstrip("?").split()}) < 60


def test_saved_tokenizer_gives_the_same_ids(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = BertTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    texts = ["A small BLUE square", "unseen words", "what colour is the star?"]
    assert again(texts).input_ids == tokenizer(texts).input_ids
    assert again.model_max_length == tokenizer.model_max_length == 512


def test_unseen_words_fall_into_pieces():
    tokenizer = train_wordpiece_tokenizer(text for text in TEXTS)
    assert tokenizer.tokenize("grassdog")[0] == "grass"
    assert tokenizer.unk_token not in tokenizer.tokenize("grassdog")
    assert tokenizer.tokenize("DOGS étranges") == ["dogs", "etranges"]
    assert tokenizer.tokenize("zebra") == ["[UNK]"]


def test_same_texts_give_same_ids_in_another_process():
    program = (
        "import json, sys; from blip_hf.data.vocabulary import train_wordpiece_tokenizer as train;"
        "texts, *sizes = json.loads(sys.argv[1]);"
        "print(json.dumps([train(texts, vocab_size=size).get_vocab() for size in sizes]))"
    )
    printed = run_code(program, json.dumps([TEXTS, 60, 80]))
    vocabularies = [train_wordpiece_tokenizer(TEXTS, vocab_size=size).get_vocab() for size in (60, 80)]
    assert json.loads(printed.splitlines()[-1]) == vocabularies
    assert [len(vocabulary) for vocabulary in vocabularies] == [60, 80]


def test_too_small_vocabulary_raises_with_the_minimum():
    with pytest.raises(ValueError, match=r"vocab_size=10 .* at least 11"):
        train_wordpiece_tokenizer(["abc"], vocab_size=10)
    assert len(train_wordpiece_tokenizer(["abc"], vocab_size=11)) == 11


@pytest.mark.parametrize("texts", [[], [" ", ""]])
def test_texts_without_a_word_are_an_error(texts):
    with pytest.raises(ValueError, match="no visible character"):
        train_wordpiece_tokenizer(texts)
