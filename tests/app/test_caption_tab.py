# SPDX-License-Identifier: BSD-3-Clause
"""Captions of the page: equal to those of `BlipCaptioner`, with their scores."""

import pytest

from blip_hf import BlipCaptioner
from blip_hf.app.caption_tab import BEAMS, SAMPLING, caption_table, write_captions


SETTINGS = {
    "prompt": "a b",
    "method": BEAMS,
    "num_captions": 3,
    "num_beams": 4,
    "top_p": 0.9,
    "seed": 3,
    "max_length": 12,
}


def write(content, path, **settings):
    return write_captions(content.captioner, content.matcher, path, *{**SETTINGS, **settings}.values())


def test_captions_are_those_of_the_captioner_the_best_first(content, upload):
    captions = write(content, upload)
    model, matcher = content.captioner.model, content.matcher.model
    own = BlipCaptioner(model, content.captioner.processor, matcher=matcher, prompt="a b", num_beams=4, max_length=12)
    expected = own.caption(upload, num_return_sequences=3, return_scores=True)
    assert sorted(caption.text for caption in captions) == sorted(caption.text for caption in expected)
    scores = [caption.mean_log_probability for caption in captions]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= caption.itm_probability <= 1 for caption in captions)


def test_samples_depend_on_the_seed(content, upload):
    first, again, other = (
        [caption.text for caption in write(content, upload, method=SAMPLING, seed=seed)] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_the_table_has_the_prompt_and_the_scores_that_there_are(content, upload):
    captions = write(content, upload, num_captions=1)
    table = caption_table(captions, "a b ")
    assert f"<td>a b {captions[0].text}</td>" in table
    assert f"{captions[0].itm_probability:.4f}" in table
    without = write_captions(content.captioner, None, upload, *{**SETTINGS, "num_captions": 1}.values())
    assert "ITM" not in caption_table(without, "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_captions": 5}, "5 captions need as many beams, got 4"),
        ({"prompt": "a " * 12}, "leaves no room for a caption after the prompt"),
    ],
)
def test_settings_that_contradict_each_other_are_errors(content, upload, settings, message):
    with pytest.raises(ValueError, match=message):
        write(content, upload, **settings)


def test_unreadable_uploads_are_errors(content, broken_upload):
    with pytest.raises(ValueError, match="Cannot read the image broken"):
        write(content, broken_upload)
