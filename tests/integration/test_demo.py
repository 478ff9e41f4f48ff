# SPDX-License-Identifier: BSD-3-Clause
"""The demo with a tiny model and a few steps: its output files, its reproducibility, and its metrics."""

import io
import json
import re

import pytest
import torch
from rich.console import Console

from blip_hf import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipProcessor
from blip_hf.caption_settings import PRETRAINING_SETTINGS
from blip_hf.data.scenes import Scenes
from blip_hf.demo.evaluate import caption_scores, retrieval_scores, word_accuracy
from blip_hf.demo.run import run_demo
from blip_hf.demo.settings import DemoSettings
from blip_hf.pages import percent


TINY = {
    "steps": 4,
    "num_scenes": 32,
    "num_held_out": 30,
    "batch_size": 8,
    "hidden_size": 32,
    "num_vision_layers": 1,
    "num_text_layers": 1,
    "queue_size": 16,
}


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """The folder of a tiny run, its printed output, and its metrics."""
    folder = tmp_path_factory.mktemp("demo")
    output = io.StringIO()
    metrics = run_demo(DemoSettings(**TINY), folder, Console(file=output, width=120))
    return folder, output.getvalue(), metrics


def test_the_demo_writes_models_metrics_and_page(tiny_run):
    folder, _, metrics = tiny_run
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    processor = BlipProcessor.from_pretrained(folder / "captioner")
    assert processor.dec_token_id < 300
    assert processor.caption_settings == PRETRAINING_SETTINGS
    for head, name in ((BlipForConditionalGeneration, "captioner"), (BlipForImageTextRetrieval, "retriever")):
        _, loading_info = head.from_pretrained(folder / name, output_loading_info=True)
        assert not loading_info["missing_keys"]
        assert not loading_info["unexpected_keys"]


def test_page_is_self_contained(tiny_run):
    page = (tiny_run[0] / "index.html").read_text()
    assert "http" not in page
    sources = re.findall(r'(?:src|href)="([^"]{0,22})', page)
    assert sources == ["data:image/png;base64,"] * 27  # three charts and 24 images
    assert page.count('<figure class="') == 24


def test_table_page_and_json_have_the_same_metrics(tiny_run):
    folder, printed, metrics = tiny_run
    page = (folder / "index.html").read_text()
    for score in metrics["scores"].values():
        value, chance, cases = percent(score["value"]), percent(score["chance"]), score["num_cases"]
        label = re.escape(score["label"])
        assert re.search(rf"{label}\W+{value}\W+{chance}\W+{cases}\D", printed)
        assert f'{score["label"]}</td><td class="value">{value}</td><td>{chance}</td><td>{cases}</td>' in page


def test_the_three_losses_are_printed_and_logged_at_each_step(tiny_run):
    _, printed, metrics = tiny_run
    assert [log["step"] for log in metrics["losses"]] == [1, 2, 3, 4]
    last = metrics["losses"][-1]
    assert re.search(
        rf"step 4 +itc +{last['loss_itc']:.3f} +itm +{last['loss_itm']:.3f} +lm +{last['loss_lm']:.3f}", printed
    )


def test_run_is_reproducible_by_its_seed(tiny_run, tmp_path):
    *_, metrics = tiny_run
    again = run_demo(DemoSettings(**TINY), tmp_path / "again", Console(file=io.StringIO()))
    other = run_demo(DemoSettings(**TINY, seed=1), tmp_path / "other", Console(file=io.StringIO()))
    assert again["losses"] == metrics["losses"]
    assert again["scores"] == metrics["scores"]
    assert other["losses"] != metrics["losses"]


def test_held_out_scenes_are_not_in_training():
    settings = DemoSettings(**TINY)
    training, held_out = Scenes(settings.num_scenes), settings.held_out_scenes()
    training_ids = {scene["image_id"] for scene in training}
    assert training_ids.isdisjoint(scene["image_id"] for scene in held_out)
    assert (len(training), len(held_out)) == (32, 30)


def test_captioner_has_the_caption_settings_of_pretraining(tiny_run):
    assert BlipProcessor.from_pretrained(tiny_run[0] / "captioner").caption_settings == PRETRAINING_SETTINGS


def test_caption_scores_match_values_computed_by_hand():
    true = ["a red ring", "two blue stars", "a red ring", "a small heart"]
    written = ["a red ring", "two red stars", "a red star ring", "a small heart"]
    exact, new, words = caption_scores(written, true, "a red ring", known={"a red ring", "two blue stars"})
    # Correct: the first and the last. The constant caption "a red ring" is correct twice.
    assert (exact.value, exact.chance, exact.num_cases) == (0.5, 0.5, 4)
    assert (new.value, new.chance, new.num_cases) == (1.0, 0.0, 1)
    # Words: 3/3, 2/3, 2/4, 3/3. Constant: 3/3, 0/3, 3/3, 1/3.
    assert words.value == pytest.approx((1 + 2 / 3 + 1 / 2 + 1) / 4)
    assert words.chance == pytest.approx((1 + 0 + 1 + 1 / 3) / 4)


def test_equal_captions_are_all_correct_in_retrieval():
    captions = ["a ring", "a star", "a ring"]
    similarity = torch.tensor([[0.1, 0.2, 0.9], [0.3, 0.5, 0.4], [0.8, 0.1, 0.2]])
    image_to_text, text_to_image = retrieval_scores(similarity, captions)
    # Each image ranks a caption equal to its own first, and vice versa: columns peak at rows 2, 1 and 0.
    assert (image_to_text.value, text_to_image.value) == (1.0, 1.0)
    # Chance: 2/3 for the rings, 1/3 for the star.
    assert image_to_text.chance == pytest.approx((2 / 3 + 1 / 3 + 2 / 3) / 3)


def test_overlong_caption_is_not_fully_correct():
    assert word_accuracy("a red ring ring", "a red ring") == 0.75
    assert word_accuracy("", "a red ring") == 0.0


@pytest.mark.parametrize("field", [{"steps": 0}, {"num_scenes": 63}, {"num_held_out": 1}])
def test_empty_demo_raises(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        DemoSettings(**field)
