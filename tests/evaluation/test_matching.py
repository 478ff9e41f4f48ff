# SPDX-License-Identifier: BSD-3-Clause
"""Scores of images and texts equal those of the model, pair by pair."""

import pytest
import torch

from blip_hf import match_texts
from blip_hf.image_utils import UnreadableImageError
from tests.support.images import noise_images


TEXTS = ["A b, c!", "f", "b b b a e f c"]


@pytest.fixture(scope="module")
def images():
    return noise_images(5)


@pytest.mark.parametrize("options", [{}, {"batch_size": 2, "num_workers": 2}])
def test_scores_are_those_of_each_pair_alone(options, model, processor, images):
    matches = match_texts(model, processor, images, TEXTS, **options)
    assert [(match.image_index, match.text) for match in matches] == [(i, text) for i in range(5) for text in TEXTS]
    for match in matches:
        inputs = processor(images[match.image_index], match.text.lower().strip("!"), return_tensors="pt")
        with torch.no_grad():
            probability = model(**inputs).itm_logits.softmax(dim=1)[0, 1].item()
            cosine = model(**inputs, use_itm_head=False).itc_similarity.item()
        assert match.itm_probability == pytest.approx(probability, abs=1e-5)
        assert match.itc_similarity == pytest.approx(cosine, abs=1e-5)


def test_many_texts_are_scored_in_parts(model, processor, images, monkeypatch):
    whole = match_texts(model, processor, images, TEXTS)
    monkeypatch.setattr("blip_hf.evaluation.matching._MAX_ROWS", 6)
    parts = match_texts(model, processor, images, TEXTS)
    assert [match.itm_probability for match in parts] == pytest.approx(
        [match.itm_probability for match in whole], abs=1e-5
    )


def test_an_unreadable_image_is_skipped_on_request(model, processor, images, tmp_path):
    broken = tmp_path / "broken.png"
    with pytest.raises(UnreadableImageError):
        match_texts(model, processor, [images[0], broken], "a")
    first, failed, last = match_texts(model, processor, [images[0], broken, images[1]], "a", on_error="skip")
    assert (failed.image_index, failed.text, failed.error_kind) == (1, None, "missing")
    assert "broken.png" in failed.error
    assert (first.image_index, last.image_index) == (0, 2)
    (only,) = match_texts(model, processor, [broken], "a", on_error="skip")
    assert only.error


@pytest.mark.parametrize("texts", [[], ["a", " !"], ""])
def test_texts_without_words_are_refused(texts, model, processor, images):
    with pytest.raises(ValueError, match="at least one text, each with words"):
        match_texts(model, processor, images, texts)


def test_pairwise_compares_each_image_with_its_own_texts(model, processor, images, tmp_path):
    texts = [TEXTS[:1], TEXTS[1:3], TEXTS]
    found = match_texts(model, processor, images[:3], texts, pairwise=True, batch_size=2)
    expected = [match_texts(model, processor, [image], own) for image, own in zip(images[:3], texts, strict=True)]
    assert [(match.image_index, match.text) for match in found] == [
        (index, text) for index, own in enumerate(texts) for text in own
    ]
    for match, alone in zip(found, (match for own in expected for match in own), strict=True):
        assert match.itm_probability == pytest.approx(alone.itm_probability, abs=1e-5)
        assert match.itc_similarity == pytest.approx(alone.itc_similarity, abs=1e-5)
    first, failed, last = match_texts(
        model,
        processor,
        [images[0], tmp_path / "lost.png", images[1]],
        [["a"], ["b"], ["c"]],
        pairwise=True,
        on_error="skip",
    )
    assert (first.text, failed.text, last.text) == ("a", None, "c")


def test_pairwise_needs_texts_for_each_image(model, processor, images):
    with pytest.raises(ValueError, match="Got 2 images and 1 lists of texts"):
        match_texts(model, processor, images[:2], [["a"]], pairwise=True)


def test_pairwise_refuses_a_text_in_place_of_a_list(model, processor, images):
    with pytest.raises(ValueError, match="expected one list of texts per image"):
        match_texts(model, processor, images[:2], ["a", "the red square"], pairwise=True)
