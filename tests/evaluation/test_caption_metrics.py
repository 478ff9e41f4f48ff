# SPDX-License-Identifier: BSD-3-Clause
"""Metrics of captions against numbers worked by hand, and the evaluation of a captioner."""

import json
import math
import shutil
import sys

import pytest

from blip_hf import BlipForConditionalGeneration
from blip_hf.data.readers import group_captions, load_pairs
from blip_hf.evaluation import caption_metrics as module
from blip_hf.evaluation.caption import evaluate_captions, write_caption_results
from blip_hf.evaluation.caption_metrics import caption_metrics, caption_metrics_by_domain, resolve_metrics
from tests.support.images import noise_images
from tests.support.twins import tiny_model_for
from tests.support.vocabularies import make_processor


needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java")

WITHOUT_JAVA = ("bleu", "rouge_l", "cider")
REFERENCES = {
    "x": ["A man rides a brown horse.", "a person on a horse"],
    "y": ["Two boats on a calm lake.", "boats, on the water"],
    "z": ["A red bus in the street!", "a bus"],
}
PERFECT = {image_id: captions[0] for image_id, captions in REFERENCES.items()}


def score(prediction, *references, metric):
    """A metric of one image."""
    return caption_metrics({0: prediction}, {0: list(references)}, metrics=[metric])


def cider(predictions, references):
    return caption_metrics(dict(enumerate(predictions)), dict(enumerate(references)), metrics=["cider"])["cider"]


# Against hand-worked numbers


def test_bleu_counts_a_word_no_more_often_than_a_reference_has_it():
    # Papineni et al., example 2: "the" stands twice in the first reference, and seven times here; 2 / 7. The closest
    # reference is as long as the caption, so that nothing is taken off for length.
    scores = score("the the the the the the the", "the cat is on the mat", "there is a cat on the mat", metric="bleu")
    assert scores["bleu_1"] == pytest.approx(2 / 7, abs=1e-6)


def test_bleu_is_the_geometric_mean_of_precisions_times_the_brevity_penalty():
    # Words a, cat, sat of 4 and pairs "a cat", "cat sat" of 3 are in the reference of 5 words, the triple "a cat sat" of 2:
    # precisions 3/4, 2/3, 1/2; penalty exp(1 - 5/4).
    scores = score("a cat sat up", "a cat sat down here", metric="bleu")
    penalty = math.exp(1 - 5 / 4)
    assert scores["bleu_1"] == pytest.approx(penalty * 3 / 4, abs=1e-6)
    assert scores["bleu_2"] == pytest.approx(penalty * (3 / 4 * 2 / 3) ** (1 / 2), abs=1e-6)
    assert scores["bleu_3"] == pytest.approx(penalty * (3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3), abs=1e-6)


def test_bleu_is_of_the_whole_set_and_no_mean_over_images():
    # 1 of 1 word right and 0 of 3: 1/4 of all words, where the mean over images is 1/2.
    scores = caption_metrics({0: "a", 1: "x y z"}, {0: ["a"], 1: ["b c d"]}, metrics=["bleu"])
    assert scores["bleu_1"] == pytest.approx(1 / 4, abs=1e-6)


def test_rouge_l_weighs_recall_over_precision():
    # Longest common subsequence "a dog": precision 2/4, recall 2/3; F with beta = 1.2.
    expected = (1 + 1.2**2) * (2 / 4) * (2 / 3) / (2 / 3 + 1.2**2 * 2 / 4)
    assert score("a big dog runs", "a dog walks", metric="rouge_l")["rouge_l"] == pytest.approx(expected, abs=1e-9)


def test_cider_weighs_words_by_how_few_images_have_them():
    # "a" is in both references and weighs log(2/2) = 0. "dog" and "a dog" weigh log 2, and match: cosines 1 and 1 for
    # single words and pairs, 0 for triples and fours, which are not there. 10 * mean(1, 1, 0, 0) = 5.
    references = [["a dog"], ["a cat"]]
    assert cider(["a dog", "a cat"], references) == pytest.approx(5)
    assert cider(["a cat", "a dog"], references) == 0
    assert cider(["a dog", "a dog"], references) == pytest.approx(5 / 2)


def test_cider_takes_off_for_another_length():
    # Pairs of words tell the length: 0 here and 1 there, exp(-1 / (2 * 6^2)). Single words match in full, as "a" weighs
    # nothing; of pairs there is none: 10 / 4 of the penalty, and 5 for the other image.
    expected = (10 / 4 * math.exp(-1 / 72) + 5) / 2
    assert cider(["dog", "a cat"], [["a dog"], ["a cat"]]) == pytest.approx(expected)


@pytest.mark.parametrize("tokenizer", ["treebank", pytest.param("ptb", marks=needs_java)])
def test_perfect_captions_have_the_highest_scores(tokenizer):
    # One reference each, or CIDEr would be a mean over those too.
    references = {image_id: captions[:1] for image_id, captions in REFERENCES.items()}
    scores = caption_metrics(PERFECT, references, tokenizer=tokenizer, metrics=WITHOUT_JAVA)
    assert scores == pytest.approx({**{f"bleu_{n}": 1 for n in (1, 2, 3, 4)}, "rouge_l": 1, "cider": 10}, abs=1e-6)


def test_captions_with_no_word_in_common_score_nothing():
    scores = caption_metrics(dict.fromkeys(REFERENCES, "zebra"), REFERENCES, metrics=WITHOUT_JAVA)
    assert scores == pytest.approx(dict.fromkeys(scores, 0), abs=1e-6)


def test_an_empty_caption_scores_nothing_and_breaks_nothing():
    scores = caption_metrics({**PERFECT, "y": ""}, REFERENCES, metrics=WITHOUT_JAVA)
    assert scores["rouge_l"] == pytest.approx(2 / 3)


@pytest.mark.slow
@needs_java
def test_meteor_weighs_recall_over_precision_and_content_over_function_words():
    # METEOR 1.5 for English: alpha 0.85, delta 0.75. "a" is a function word (0.25), the others have content (0.75). Of the
    # whole set "a man rides" is written and right: precision 1. "a man rides" and "a boat" were wanted: recall
    # (0.25 + 2 * 0.75) / (2 * 0.25 + 3 * 0.75) = 7/11. One run of matches has no penalty for order.
    expected = 1 * (7 / 11) / (0.85 * 1 + 0.15 * 7 / 11)
    # The bars and the line end are those of METEOR's own protocol.
    predictions, references = {"x": "a ||| man\nrides", "y": ""}, {"x": ["a man rides"], "y": ["a boat"]}
    assert caption_metrics(predictions, references, metrics=["meteor"])["meteor"] == pytest.approx(expected)


# Words


def test_case_punctuation_and_white_space_do_not_count():
    scores = caption_metrics(
        {"x": " a MAN, rides a\tbrown horse ...", "y": "two boats\non a calm lake", "z": "a red bus: in the street?"},
        REFERENCES,
        metrics=["bleu"],
    )
    assert scores["bleu_4"] == pytest.approx(1, abs=1e-6)


@needs_java
def test_both_tokenizers_give_the_same_words():
    # Shifted against each other, so that no score is trivial.
    texts = [
        "A man's (brown) dog doesn't run -- it \"walks\"; slowly...",
        "Three T-shirts, $5 each, at 5:30 p.m. in the U.S.!",
        "black-and-white photo of a girl & her mom/dad",
        "the dog",
    ]
    references = {number: texts[number:] for number in range(3)}
    predictions = {number: texts[number] + " the dog" for number in range(3)}
    scores = [
        caption_metrics(predictions, references, tokenizer=name, metrics=WITHOUT_JAVA) for name in module.TOKENIZERS
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-9)


@needs_java
def test_both_tokenizers_agree_on_real_captions(data_root):
    path = data_root / "coco_sample" / "captions_val2017_sample.json"
    captions = {group["image_id"]: group["captions"] for group in group_captions(load_pairs(path))}
    predictions = {image_id: own[0] for image_id, own in captions.items()}
    references = {image_id: own[1:] for image_id, own in captions.items()}
    scores = [
        caption_metrics(predictions, references, tokenizer=name, metrics=WITHOUT_JAVA) for name in module.TOKENIZERS
    ]
    # Some 25 captions of 10,000 have other words.
    assert scores[0] == pytest.approx(scores[1], rel=5e-3)
    # People describe an image with about this much agreement.
    assert 0.5 < scores[0]["cider"] < 1.5


# By domain, and what is refused


def test_each_domain_is_measured_on_its_own():
    domains = {"x": "near-domain", "y": "out-domain", "z": "near-domain"}
    predictions = {**PERFECT, "y": "a bus"}
    scores = caption_metrics_by_domain(predictions, REFERENCES, domains, metrics=WITHOUT_JAVA)
    assert list(scores) == ["near-domain", "out-domain", "entire"]
    near = {image_id: REFERENCES[image_id] for image_id in "xz"}
    assert scores["near-domain"] == caption_metrics({i: PERFECT[i] for i in "xz"}, near, metrics=WITHOUT_JAVA)
    assert scores["entire"] == caption_metrics(predictions, REFERENCES, metrics=WITHOUT_JAVA)
    with pytest.raises(ValueError, match="image 'y' has no domain"):
        caption_metrics_by_domain(predictions, REFERENCES, {"x": "a", "z": "a"})
    with pytest.raises(ValueError, match="image 'y' has no reference"):
        caption_metrics_by_domain(predictions, near, domains)


@pytest.mark.parametrize(
    ("predictions", "references", "options", "message"),
    [
        ({}, {}, {}, "no predictions"),
        ({1: "a"}, {1: ["a"], 2: ["b"]}, {}, "image 2 has no prediction; there are 1 predictions and 2 references"),
        ({1: "a", 2: "b"}, {1: ["a"]}, {}, "image 2 has no reference"),
        ({1: "a"}, {1: []}, {}, "image 1 has an empty list of references"),
        ({1: "a"}, {1: "a"}, {}, "references of the image 1 are a str"),
        (
            {1: "a"},
            {1: ["a"]},
            {"metrics": ["blue"]},
            r"metrics=\['blue'\] is unknown. Pass a list with any of 'bleu',",
        ),
        ({1: "a"}, {1: ["a"]}, {"metrics": "bleu"}, "metrics='bleu' is unknown. Pass a list"),
        ({1: "a"}, {1: ["a"]}, {"tokenizer": "bert"}, "tokenizer='bert' is unknown. Pass one of 'treebank', 'ptb'"),
    ],
)
def test_what_cannot_be_compared_is_named(predictions, references, options, message):
    with pytest.raises(ValueError, match=message):
        caption_metrics(predictions, references, **options)


@needs_java
def test_with_java_meteor_is_among_the_metrics():
    assert resolve_metrics() == (*WITHOUT_JAVA, "meteor")


def test_without_java_meteor_is_left_out_with_a_warning_unless_asked_for(monkeypatch, tmp_path):
    warnings = []
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module.logger, "warning_once", warnings.append)
    assert resolve_metrics() == WITHOUT_JAVA
    assert len(warnings) == 1
    assert "METEOR" in warnings[0]
    for options in ({"metrics": ["meteor"]}, {"metrics": ["spice"]}, {"tokenizer": "ptb"}):
        with pytest.raises(ValueError, match="needs Java, and there is no `java` that runs"):
            resolve_metrics(**options)


@pytest.mark.parametrize("package", ["nltk.tokenize", "pycocoevalcap.tokenizer.ptbtokenizer"])
def test_missing_packages_are_named_with_their_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"need {package.split('.')[0]}.*pip install 'blip_hf\[metrics\]'"):
        caption_metrics({1: "a"}, {1: ["a"]}, metrics=["bleu"])


# The evaluation of a captioner

PROMPT = "a b"


@pytest.fixture(scope="module")
def processor():
    return make_processor()


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
def test_captions_are_those_of_the_search_without_the_prompt(max_length, min_length, model, processor, groups):
    model.train()
    result = evaluate(model, processor, groups, max_length=max_length, min_length=min_length, batch_size=2)
    assert model.training  # as it was
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


def test_settings_of_the_search_reach_it(model, processor, groups):
    default = evaluate(model, processor, groups).predictions
    assert evaluate(model, processor, groups, num_beams=1).predictions != default
    assert evaluate(model, processor, groups, repetition_penalty=5.0).predictions != default


def test_broken_images_are_skipped_and_counted(model, processor, groups, tmp_path):
    broken = {"image": str(tmp_path / "lost.jpg"), "captions": ["c"], "image_id": 7}
    result = evaluate(model, processor, [groups[0], broken, *groups[1:]], batch_size=3)
    assert result.num_skipped == 1
    assert result.predictions == evaluate(model, processor, groups).predictions
    with pytest.raises(ValueError, match=r"None of 1 images could be read.*image_root"):
        evaluate(model, processor, [broken])


def test_images_without_captions_are_written_about_and_not_judged(model, processor, groups):
    bare = [{**group, "captions": []} for group in groups]
    result = evaluate(model, processor, bare)
    assert result.metrics == {}
    judged = evaluate(model, processor, groups)
    assert result.predictions == judged.predictions
    first = evaluate(model, processor, [groups[0], *bare[1:]], num_beams=3)
    references = {groups[0]["image_id"]: groups[0]["captions"]}
    own = {image_id: result.predictions[image_id] for image_id in references}
    assert first.metrics == caption_metrics(own, references, metrics=WITHOUT_JAVA)


def test_domains_are_measured_where_images_have_them(model, processor, groups):
    parted = [{**group, "domain": f"{'in' if group['image_id'] else 'out'}-domain"} for group in groups]
    result = evaluate(model, processor, parted)
    assert list(result.metrics_by_domain) == ["in-domain", "out-domain", "entire"]
    assert result.metrics == result.metrics_by_domain["entire"] == evaluate(model, processor, groups).metrics


def test_metrics_that_cannot_be_computed_are_refused_before_the_run(processor, groups):
    with pytest.raises(ValueError, match="is unknown"):
        evaluate_captions(None, processor, groups, metrics=["blue"])


def test_an_id_for_two_images_is_refused(model, processor, groups):
    with pytest.raises(ValueError, match=r"Two images have the id 0. Join their captions with `group_captions`"):
        evaluate(model, processor, [groups[0], groups[0]])


def test_results_are_written_as_the_servers_take_them(tmp_path):
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
