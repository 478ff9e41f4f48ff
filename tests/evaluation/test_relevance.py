# SPDX-License-Identifier: BSD-3-Clause
"""Equal captions and equal images in retrieval: what is right, and how many there are."""

import pytest
import torch

from blip_hf.evaluation.relevance import Equality, check_relevance
from blip_hf.evaluation.retrieval import evaluate_retrieval
from tests.support.images import noise_images


def pairs_of(images, captions, start=0):
    return [
        {"image": image, "caption": caption, "image_id": start + number}
        for number, (image, caption) in enumerate(zip(images, captions, strict=True))
    ]


@pytest.fixture(scope="module")
def pairs():
    return pairs_of(noise_images(6), ["a b", "c", "d e f", "g h", "i j k", "l"])


DIRECTIONS = ("image_to_text_r@1", "text_to_image_r@1")


def test_a_set_twice_under_other_ids_has_the_recall_of_one(model, processor, pairs):
    alone = evaluate_retrieval(model, processor, pairs, ks=(1, 3))
    twice = [*pairs, *({**pair, "image_id": 100 + pair["image_id"]} for pair in pairs)]
    both = evaluate_retrieval(model, processor, twice, ks=(1, 3))
    for name in DIRECTIONS:
        assert both.reranked[name] == alone.reranked[name]
        assert both.itc[name] == alone.itc[name]
    assert (both.num_equal_images, both.num_equal_texts) == (12, 12)
    assert (alone.num_equal_images, alone.num_equal_texts) == (0, 0)
    # The protocol of the published numbers: the other copy is wrong, and ties count against the model.
    own = evaluate_retrieval(model, processor, twice, ks=(1, 3), relevance="own")
    assert [own.reranked[name] for name in DIRECTIONS] == [0.0, 0.0]
    assert own.metrics()["num_equal_texts"] == 12


def test_both_rules_agree_without_equal_images_and_captions(model, processor, pairs):
    equal, own = (evaluate_retrieval(model, processor, pairs, relevance=rule).metrics() for rule in ("equal", "own"))
    assert equal == own


def test_captions_of_an_equal_image_are_right(model, processor, pairs):
    # The same image under two ids, with a caption each, ranks as one image with two captions.
    images = noise_images(3)
    split = pairs_of([images[0], images[1], images[2], images[0]], ["a b", "c", "d", "e f"])
    joined = [{**pair, "image_id": 0 if pair["image_id"] == 3 else pair["image_id"]} for pair in split]
    found, expected = (evaluate_retrieval(model, processor, records) for records in (split, joined))
    assert found.num_equal_images == 2
    assert found.reranked["text_to_image_r@1"] == expected.reranked["text_to_image_r@1"]


def test_equal_pixels_in_other_containers_are_equal_images(model, processor, tmp_path):
    image = noise_images(1)[0]
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.bmp")
    records = pairs_of([tmp_path / "a.png", tmp_path / "b.bmp"], ["a", "b"])
    assert evaluate_retrieval(model, processor, records).num_equal_images == 2


def test_a_text_is_right_for_images_that_an_equal_text_describes():
    # Images 0 and 1 have equal captions, and images 1 and 2 are equal.
    equality = Equality.of(torch.tensor([0, 1, 2]), torch.tensor([5, -6, -6]), ["a dog", "a dog", "a cat"])
    assert equality.relevance("equal").tolist() == [[True, True, False], [True, True, True], [True, True, True]]
    assert equality.relevance("own").tolist() == torch.eye(3).bool().tolist()
    assert (equality.num_equal_images, equality.num_equal_texts) == (2, 2)


def test_repeated_captions_of_one_image_are_not_counted():
    equality = Equality.of(torch.tensor([0, 0, 1]), torch.tensor([1, 2]), ["a dog", "a dog", "a cat"])
    assert equality.num_equal_texts == 0


def test_unknown_rules_are_refused():
    with pytest.raises(ValueError, match="relevance='same' is unknown; pass one of 'equal', 'own'"):
        check_relevance("same")
