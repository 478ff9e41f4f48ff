# SPDX-License-Identifier: BSD-3-Clause
"""Each head overfits eight pairs, which a shifted label or a wrong first token would prevent."""

from functools import partial

import pytest
import torch

from blip_hf import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForPreTraining,
    BlipForQuestionAnswering,
    BlipForRetrievalTraining,
    BlipForVisualReasoning,
)
from tests.support.optimization import optimize
from tests.support.tiny_models import (
    CLS,
    DEC,
    PAD,
    SEP,
    tiny_config,
    tiny_nlvr2_config,
    tiny_pretraining_config,
    tiny_retrieval_config,
)


NUM_PAIRS, LENGTH = 8, 6


@pytest.fixture
def pairs():
    """Eight images with different captions: [CLS], two to four words, [SEP], padding."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.full((NUM_PAIRS, LENGTH), PAD)
    for row, words in zip(input_ids, torch.randint(4, DEC, (NUM_PAIRS, 4), generator=generator), strict=True):
        length = 2 + int(words[0]) % 3
        row[0], row[1 : 1 + length], row[1 + length] = CLS, words[:length], SEP
    assert len(input_ids.unique(dim=0)) == NUM_PAIRS
    pixel_values = torch.randn(NUM_PAIRS, 3, 32, 32, generator=generator)
    return {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": (input_ids != PAD).long()}


def assert_captions_are_reproduced(generate, pairs):
    generated = generate(max_new_tokens=LENGTH, num_beams=1, do_sample=False)
    for row, caption, mask in zip(generated, pairs["input_ids"], pairs["attention_mask"], strict=True):
        expected = [DEC, *caption[mask.bool()].tolist()[1:]]
        assert row.tolist()[: len(expected)] == expected


def matching_accuracy(matcher, pairs):
    """Accuracy over all pairs of images and texts."""
    ids, mask = (pairs[name].repeat(NUM_PAIRS, 1) for name in ("input_ids", "attention_mask"))
    logits = matcher(ids, pairs["pixel_values"], attention_mask=mask).itm_logits
    return (logits.argmax(dim=-1) == torch.eye(NUM_PAIRS, dtype=torch.long).flatten()).float().mean().item()


def assert_all_pairs_are_found(retriever, pairs):
    """Asserts R@1 = 1, by the ITM head and in both directions by cosine."""
    assert matching_accuracy(retriever, pairs) == 1.0
    similarity = retriever(**pairs, use_itm_head=False).itc_similarity
    own = torch.arange(NUM_PAIRS)
    assert torch.equal(similarity.argmax(dim=1), own)
    assert torch.equal(similarity.argmax(dim=0), own)


def test_captioner_reproduces_its_captions(pairs):
    captioner = BlipForConditionalGeneration(tiny_config())
    optimize(captioner, lambda: captioner(**pairs, labels=pairs["input_ids"]).loss, num_steps=100)
    with torch.no_grad():
        assert_captions_are_reproduced(partial(captioner.generate, pairs["pixel_values"]), pairs)


def test_matcher_separates_its_pairs_from_all_others(pairs):
    matcher = BlipForImageTextRetrieval(tiny_config())
    ids, mask = (pairs[name].repeat(NUM_PAIRS, 1) for name in ("input_ids", "attention_mask"))
    labels = torch.eye(NUM_PAIRS, dtype=torch.long).flatten()
    optimize(
        matcher, lambda: matcher(ids, pairs["pixel_values"], attention_mask=mask, labels=labels).loss, num_steps=100
    )
    with torch.no_grad():
        assert matching_accuracy(matcher, pairs) == 1.0


def overfit_contrastive(model, pairs, num_steps):
    image_ids = torch.arange(NUM_PAIRS)
    optimize(model, lambda: model(**pairs, image_ids=image_ids).loss, num_steps, after_step=model.update_momentum)


def test_pretraining_teaches_all_three_heads(pairs):
    model = BlipForPreTraining(tiny_pretraining_config(queue_size=0, momentum=0.9))
    overfit_contrastive(model, pairs, num_steps=120)
    with torch.no_grad():
        assert_captions_are_reproduced(partial(model.export_captioner().generate, pairs["pixel_values"]), pairs)
        assert_all_pairs_are_found(model.export_retriever(), pairs)


def test_retrieval_training_teaches_both_heads(pairs):
    model = BlipForRetrievalTraining(tiny_retrieval_config(queue_size=0, momentum=0.9))
    overfit_contrastive(model, pairs, num_steps=100)
    with torch.no_grad():
        assert_all_pairs_are_found(model.export_retriever(), pairs)


def test_nlvr2_model_separates_true_and_false_sentences(pairs):
    model = BlipForVisualReasoning(tiny_nlvr2_config())
    # Each of four sentences is true of a pair of images and false of the swapped pair.
    images = torch.stack([pairs["pixel_values"][:4], pairs["pixel_values"][4:]], dim=1)  # (4, 2, 3, 32, 32)
    inputs = {name: pairs[name][:4].repeat(2, 1) for name in ("input_ids", "attention_mask")}
    inputs |= {"pixel_values": torch.cat([images, images.flip(1)]), "labels": torch.arange(2).repeat_interleave(4)}
    optimize(model, lambda: model(**inputs).loss, num_steps=300)
    with torch.no_grad():
        logits = model(**inputs).logits
    assert torch.equal(logits.argmax(dim=-1), inputs["labels"])


def test_vqa_model_writes_and_ranks_its_answers(pairs):
    model = BlipForQuestionAnswering(tiny_config())
    # One question for all images: only the image determines the answer. The labels start with [CLS].
    question = torch.tensor([[CLS, 5, 6, SEP]]).repeat(NUM_PAIRS, 1)
    inputs = {"input_ids": question, "pixel_values": pairs["pixel_values"]}
    optimize(model, lambda: model(**inputs, labels=pairs["input_ids"]).loss, num_steps=100)
    with torch.no_grad():
        assert_captions_are_reproduced(partial(model.generate, **inputs), pairs)
        ranking = model.rank_answers(**inputs, attention_mask=None, answer_ids=pairs["input_ids"])
    assert torch.equal(ranking.best, torch.arange(NUM_PAIRS))
