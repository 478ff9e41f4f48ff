# SPDX-License-Identifier: BSD-3-Clause
"""Model cards: metadata that the Hub reads, figures of the run, no paths of this machine, and snippets that run."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import blip_hf
from blip_hf.demo.settings import DemoSettings
from blip_hf.model_card import TrainingFacts, make_model_card, public_name, write_model_card
from blip_hf.model_kinds import KINDS
from blip_hf.tasks.run_card import changed_options
from blip_hf.training.arguments import weight_arguments
from tests.support.paths import ROOT


FACTS = TrainingFacts(
    base_models=["Salesforce/blip-image-captioning-base"],
    data=["/home/someone/coco/train.json", "hf://datasets/owner/photos"],
    eval_data=["coco/val.json"],
    eval_split="val",
    arguments={"learning_rate": 1e-5, "prompt": "a | b\nc"},
    metrics={
        "cider": 1.23456789,
        "num_skipped": 3,
        "runtime": 9.5,
        "num_skipped_by_reason": {},
        "bleu_4": float("nan"),
    },
    steps=12,
    hardware="CPU",
    code="blip_hf 1.2.3",
)


def test_metadata_have_the_form_of_the_hub():
    card = ModelCard(str(make_model_card("BlipForConditionalGeneration", "owner/captioner", FACTS, license="mit")))
    assert card.data.pipeline_tag == "image-text-to-text"
    assert card.data.library_name == "transformers"
    assert card.data.license == "mit"
    assert card.data.base_model == ["Salesforce/blip-image-captioning-base"]
    assert card.data.datasets == ["owner/photos"]
    assert {"blip", "blip_hf", "image-captioning"} <= set(card.data.tags)
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("cider", 1.23457)
    assert (result.dataset_name, result.dataset_split) == ("coco/val.json", "val")


def test_a_card_names_no_folder_of_this_machine():
    text = str(make_model_card("BlipForConditionalGeneration", "captioner", FACTS))
    assert "/home" not in text
    assert "| data | train.json, hf://datasets/owner/photos |" in text


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("~/photos/{0..9}.tar", "{0..9}.tar"),
        ("../data/pairs.json", "pairs.json"),
        (r"C:\data\pairs.json", "pairs.json"),
        ("data/pairs.json", "data/pairs.json"),
        ("s3://bucket/pairs.json?token=secret", "s3://bucket/pairs.json"),
        ("scenes:300:0.2", "scenes:300:0.2"),
    ],
)
def test_public_names_have_no_private_part(source, name):
    assert public_name(source) == name


def test_values_do_not_break_the_table():
    assert r"| `prompt` | a \| b c |" in str(make_model_card("BlipForConditionalGeneration", "captioner", FACTS))


def test_a_card_without_facts_claims_nothing_about_the_training():
    text = str(make_model_card("BlipForImageTextRetrieval", "matcher", TrainingFacts()))
    assert "## Training" not in text
    assert "This model was not evaluated." in text


def test_each_head_has_a_kind():
    heads = {name for name in blip_hf.__all__ if re.fullmatch("BlipFor.*|BlipModel", name)}
    assert heads == set(KINDS)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        write_model_card(tmp_path)


# The rows of README's table of the demo, and the names of its metrics.
DEMO_METRICS = {
    "caption, exact match": "caption_exact_match",
    "... of captions not in training (82 scenes)": "new_caption_exact_match",
    "caption, word accuracy": "caption_word_accuracy",
    "image to caption, R@1": "image_to_text_r@1",
    "caption to image, R@1": "text_to_image_r@1",
}
# To renew it: `make demo`, then copy `runs/demo/README.md` with the name `runs/demo` and the licence.
DEMO_CARD = ROOT / "MODEL_CARD.md"


def demo_metrics():
    return {result.metric_type: result.metric_value for result in ModelCard.load(DEMO_CARD).data.eval_results}


def test_the_card_of_the_repository_is_what_the_demo_writes():
    settings, text = DemoSettings(), DEMO_CARD.read_text()
    rows = dict(re.findall(r"^\| (minutes|hardware|code) \| (.+) \|$", text, re.MULTILINE))
    facts = TrainingFacts(
        data=["scenes"],
        eval_data=[f"scenes:{settings.num_held_out} (held-out)"],
        arguments=changed_options(settings.pretrain_options())
        | weight_arguments(settings.training_arguments(Path("."))),
        metrics=demo_metrics(),
        steps=settings.steps,
        epochs=settings.steps * settings.batch_size / settings.num_scenes,
        minutes=float(rows["minutes"]),
        hardware=rows["hardware"],
        code=rows["code"],
    )
    assert text == str(make_model_card("BlipForPreTraining", "runs/demo", facts, license="bsd-3-clause"))


def test_the_readme_has_the_metrics_of_the_card():
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+)% \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    readme = {DEMO_METRICS[label]: value for label, value in rows if label in DEMO_METRICS}
    assert readme == {name: f"{100 * value:.1f}" for name, value in demo_metrics().items()}
