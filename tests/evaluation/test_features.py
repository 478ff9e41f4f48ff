# SPDX-License-Identifier: BSD-3-Clause
"""Features of images, texts and pairs."""

import pytest
import torch
from torch.testing import assert_close

from blip_hf.evaluation.features import image_features, multimodal_embeds, text_features
from tests.support.images import noise_images
from tests.support.tiny_models import SUMMATION_TOLERANCE


TEXTS = ["a b c d e", "f", "c a", "b b b a e f c", "d e"]


@pytest.fixture(scope="module")
def images():
    return noise_images(len(TEXTS))


def test_features_do_not_depend_on_the_batch(model, processor, images):
    for extract, *items in ((image_features, images), (text_features, TEXTS), (multimodal_embeds, images, TEXTS)):
        whole = extract(model, processor, *items, batch_size=64)
        alone = torch.cat([extract(model, processor, *([item] for item in row)) for row in zip(*items, strict=True)])
        assert_close(whole, alone, **SUMMATION_TOLERANCE)
        assert not whole.requires_grad


def test_features_are_unit_vectors(model, processor, images):
    assert_close(image_features(model, processor, images).norm(dim=1), torch.ones(len(images)))
    assert_close(text_features(model, processor, TEXTS).norm(dim=1), torch.ones(len(TEXTS)))


def test_the_itm_head_reads_the_multimodal_embeds(model, processor, images):
    logits = model.itm_head(multimodal_embeds(model, processor, images, TEXTS))
    inputs = processor(images, TEXTS, role="contrast", return_tensors="pt")
    assert_close(logits, model(**inputs).itm_logits, **SUMMATION_TOLERANCE)


def test_unequal_numbers_of_images_and_texts_raise(model, processor, images):
    with pytest.raises(ValueError, match="1 images and 2 texts"):
        multimodal_embeds(model, processor, images[:1], ["a", "b"])


def test_reading_ahead_changes_nothing(model, processor, images):
    for extract, *items in ((image_features, images), (multimodal_embeds, images, TEXTS)):
        expected = extract(model, processor, *items, batch_size=2)
        assert torch.equal(extract(model, processor, *items, batch_size=2, num_workers=3), expected)
