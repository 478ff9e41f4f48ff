# SPDX-License-Identifier: BSD-3-Clause
"""Overlays of the page: those of `explain`, one for each word."""

import pytest
from PIL import Image, ImageChops

from blip_hf import explain
from blip_hf.app.explain_tab import draw_words, explained_models
from blip_hf.app.models import PageContent


@pytest.mark.parametrize("number", [0, 1])
def test_each_word_has_its_overlay(content, upload, number):
    models = explained_models(content)
    role = list(models)[number]
    drawn = draw_words(models, upload, "a b c", role)
    explanation = explain(models[role].model, models[role].processor, upload, "a b c")
    assert [word for _, word in drawn] == ["a", "b", "c"]
    for (overlay, word), index in zip(drawn, range(3), strict=True):
        assert ImageChops.difference(overlay, explanation.overlay(index)).getbbox() is None, word


def test_only_loaded_models_are_explained(content):
    assert list(explained_models(content)) == ["Match of image and text", "Each word of a caption"]
    assert list(explained_models(PageContent(captioner=content.captioner))) == ["Each word of a caption"]
    assert explained_models(PageContent()) == {}


def test_a_missing_text_is_an_error(content, upload):
    models = explained_models(content)
    with pytest.raises(ValueError, match="No text is given"):
        draw_words(models, upload, " ", next(iter(models)))


def test_large_images_are_reduced_before_they_are_drawn(content, tmp_path):
    path = tmp_path / "large.png"
    Image.new("RGB", (1600, 800), "red").save(path)
    models = explained_models(content)
    ((overlay, _),) = draw_words(models, str(path), "a", next(iter(models)))
    assert overlay.size == (512, 256)
