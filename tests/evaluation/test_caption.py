# SPDX-License-Identifier: BSD-3-Clause
"""Captioning a whole set and scoring the captions."""

import json

import pytest

from blip_hf import BlipForConditionalGeneration
from blip_hf.caption_settings import CaptionSettings
from blip_hf.evaluation.caption import evaluate_captions, write_caption_results
from blip_hf.evaluation.caption_metrics import caption_metrics
from tests.support.images import noise_images
from tests.support.tiny_models import tiny_model_for


WITHOUT_JAVA = ("bleu", "rouge_l", "cider")
PROMPT = "a b"


@pytest.fixture(scope="module")
def model(processor):
    return tiny_model_for(BlipForConditionalGeneration, processor, seed=2)


@pytest.fixture(scope="module")
def groups():
    return [
        {"image": image, "captions": ["c d e f", "g"], "image_id": 10 * number}
        for number, image in enumerate(noise_images(5))
    ]


def evaluate(model, processor, groups, **options):
    return evaluate_captions(model, processor, groups, prompt=PROMPT, metrics=WITHOUT_JAVA, **options)


@pytest.mark.parametrize(("max_length", "min_length"), [(20, 5), (9, 9)])
def test_captions_equal_those_of_generate_without_the_prompt(max_length, min_length, model, processor, groups):
    model.train()
    result = evaluate(model, processor, groups, max_length=max_length, min_length=min_length, batch_size=2)
    assert model.training
    model.eval()
    for group in groups:
        inputs = processor(group["image"], PROMPT, return_tensors="pt")
        sequence = model.generate(**inputs, num_beams=3, max_length=max_length, min_length=min_length)[0]
        assert min_length <= len(sequence) <= max_length
        text = processor.decode(sequence, skip_special_tokens=True)
        assert text.startswith(PROMPT)
        assert result.predictions[group["image_id"]] == text.removeprefix(PROMPT).strip()
    assert len(set(result.predictions.values())) > 1
    references = {group["image_id"]: group["captions"] for group in groups}
    assert result.metrics == caption_metrics(result.predictions, references, metrics=WITHOUT_JAVA)
    assert (result.num_skipped, result.metrics_by_domain) == (0, {})


def test_search_settings_change_the_captions(model, processor, groups):
    default = evaluate(model, processor, groups).predictions
    assert evaluate(model, processor, groups, num_beams=1).predictions != default
    assert evaluate(model, processor, groups, repetition_penalty=5.0).predictions != default


def test_settings_default_to_those_of_the_checkpoint(monkeypatch, model, processor, groups):
    own = CaptionSettings(prompt=PROMPT, num_beams=1, max_length=9, min_length=7, repetition_penalty=5.0)
    monkeypatch.setattr(processor, "caption_settings", own)
    given = evaluate(model, processor, groups, num_beams=1, max_length=9, min_length=7, repetition_penalty=5.0)
    assert evaluate_captions(model, processor, groups, metrics=WITHOUT_JAVA).predictions == given.predictions
    longer = evaluate_captions(model, processor, groups, metrics=WITHOUT_JAVA, max_length=20, min_length=12)
    assert longer.predictions != given.predictions


def test_broken_images_are_skipped_and_counted(model, processor, groups, tmp_path):
    broken = {"image": str(tmp_path / "lost.jpg"), "captions": ["c"], "image_id": 7}
    result = evaluate(model, processor, [groups[0], broken, *groups[1:]], batch_size=3)
    assert result.num_skipped == 1
    assert result.predictions == evaluate(model, processor, groups).predictions
    with pytest.raises(ValueError, match=r"None of 1 images could be read.*image_root"):
        evaluate(model, processor, [broken])


def test_images_without_references_are_captioned_but_not_scored(model, processor, groups):
    bare = [{**group, "captions": []} for group in groups]
    result = evaluate(model, processor, bare)
    assert result.metrics == {}
    judged = evaluate(model, processor, groups)
    assert result.predictions == judged.predictions
    first = evaluate(model, processor, [groups[0], *bare[1:]], num_beams=3)
    references = {groups[0]["image_id"]: groups[0]["captions"]}
    own = {image_id: result.predictions[image_id] for image_id in references}
    assert first.metrics == caption_metrics(own, references, metrics=WITHOUT_JAVA)


def test_images_with_domains_have_metrics_per_domain(model, processor, groups):
    parted = [{**group, "domain": f"{'in' if group['image_id'] else 'out'}-domain"} for group in groups]
    result = evaluate(model, processor, parted)
    assert list(result.metrics_by_domain) == ["in-domain", "out-domain", "entire"]
    assert result.metrics == result.metrics_by_domain["entire"] == evaluate(model, processor, groups).metrics


def test_unknown_metrics_raise_before_the_run(processor, groups):
    with pytest.raises(ValueError, match="is unknown"):
        evaluate_captions(None, processor, groups, metrics=["blue"])


def test_a_duplicate_image_id_raises(model, processor, groups):
    with pytest.raises(ValueError, match=r"Two images have the id 0. Join their captions with `group_captions`"):
        evaluate(model, processor, [groups[0], groups[0]])


def test_results_have_the_format_of_the_servers(tmp_path):
    path = tmp_path / "captions_val2017_blip_results.json"
    write_caption_results({391895: "a man", 3: 'a "dog"'}, path)
    assert json.loads(path.read_text()) == [
        {"image_id": 391895, "caption": "a man"},
        {"image_id": 3, "caption": 'a "dog"'},
    ]
    with pytest.raises(TypeError):
        write_caption_results({1: object()}, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert len(json.loads(path.read_text())) == 2


def test_reading_ahead_changes_nothing(model, processor, groups):
    expected = evaluate(model, processor, groups, batch_size=2)
    assert evaluate(model, processor, groups, batch_size=2, num_workers=3) == expected
