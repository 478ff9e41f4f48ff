# SPDX-License-Identifier: BSD-3-Clause
"""Caption metrics against values computed by hand."""

import math
import shutil
import sys

import pytest

from blip_hf.data.readers import group_captions, load_pairs
from blip_hf.evaluation import caption_metrics as module
from blip_hf.evaluation.caption_metrics import caption_metrics, caption_metrics_by_domain, resolve_metrics


needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java")

WITHOUT_JAVA = ("bleu", "rouge_l", "cider")
REFERENCES = {
    "x": ["A man rides a brown horse.", "a person on a horse"],
    "y": ["Two boats on a calm lake.", "boats, on the water"],
    "z": ["A red bus in the street!", "a bus"],
}
PERFECT = {image_id: captions[0] for image_id, captions in REFERENCES.items()}


def score(prediction, *references, metric):
    """Returns a metric of one image."""
    return caption_metrics({0: prediction}, {0: list(references)}, metrics=[metric])


def cider(predictions, references):
    return caption_metrics(dict(enumerate(predictions)), dict(enumerate(references)), metrics=["cider"])["cider"]


# Values computed by hand


def test_bleu_clips_the_count_of_a_word_to_that_of_the_reference():
    # Papineni et al., example 2: "the" is twice in the first reference and seven times here: 2 / 7. The closest
    # reference is as long as the caption, so there is no brevity penalty.
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


def test_bleu_is_computed_over_the_whole_set():
    # 1 of 1 word right and 0 of 3: 1/4 of all words, where the mean over images is 1/2.
    scores = caption_metrics({0: "a", 1: "x y z"}, {0: ["a"], 1: ["b c d"]}, metrics=["bleu"])
    assert scores["bleu_1"] == pytest.approx(1 / 4, abs=1e-6)


def test_rouge_l_weighs_recall_over_precision():
    # Longest common subsequence "a dog": precision 2/4, recall 2/3; F with beta = 1.2.
    expected = (1 + 1.2**2) * (2 / 4) * (2 / 3) / (2 / 3 + 1.2**2 * 2 / 4)
    assert score("a big dog runs", "a dog walks", metric="rouge_l")["rouge_l"] == pytest.approx(expected, abs=1e-9)


def test_cider_weighs_words_by_inverse_document_frequency():
    # "a" is in both references and weighs log(2/2) = 0. "dog" and "a dog" weigh log 2, and match: cosines 1 and 1 for
    # single words and pairs, 0 for triples and fours, which do not occur. 10 * mean(1, 1, 0, 0) = 5.
    references = [["a dog"], ["a cat"]]
    assert cider(["a dog", "a cat"], references) == pytest.approx(5)
    assert cider(["a cat", "a dog"], references) == 0
    assert cider(["a dog", "a dog"], references) == pytest.approx(5 / 2)


def test_cider_has_a_length_penalty():
    # The length is the number of word pairs: 0 and 1, so exp(-1 / (2 * 6^2)). Single words match fully, since "a" has
    # weight 0; no pairs match: 10 / 4 of the penalty, and 5 for the other image.
    expected = (10 / 4 * math.exp(-1 / 72) + 5) / 2
    assert cider(["dog", "a cat"], [["a dog"], ["a cat"]]) == pytest.approx(expected)


@pytest.mark.parametrize("tokenizer", ["treebank", pytest.param("ptb", marks=needs_java)])
def test_perfect_captions_have_the_highest_scores(tokenizer):
    # One reference each, since CIDEr is a mean over references.
    references = {image_id: captions[:1] for image_id, captions in REFERENCES.items()}
    scores = caption_metrics(PERFECT, references, tokenizer=tokenizer, metrics=WITHOUT_JAVA)
    assert scores == pytest.approx({**{f"bleu_{n}": 1 for n in (1, 2, 3, 4)}, "rouge_l": 1, "cider": 10}, abs=1e-6)


def test_captions_without_common_words_score_zero():
    scores = caption_metrics(dict.fromkeys(REFERENCES, "zebra"), REFERENCES, metrics=WITHOUT_JAVA)
    assert scores == pytest.approx(dict.fromkeys(scores, 0), abs=1e-6)


def test_an_empty_caption_scores_zero():
    scores = caption_metrics({**PERFECT, "y": ""}, REFERENCES, metrics=WITHOUT_JAVA)
    assert scores["rouge_l"] == pytest.approx(2 / 3)


@pytest.mark.slow
@needs_java
def test_meteor_weighs_recall_over_precision_and_content_over_function_words():
    # METEOR 1.5 for English: alpha 0.85, delta 0.75. "a" is a function word (0.25), the others have content (0.75). Of the
    # whole set "a man rides" is written and right: precision 1. "a man rides" and "a boat" are in the references: recall
    # (0.25 + 2 * 0.75) / (2 * 0.25 + 3 * 0.75) = 7/11. One run of matches has no penalty for order.
    expected = 1 * (7 / 11) / (0.85 * 1 + 0.15 * 7 / 11)
    # The bars and the line end are those of METEOR's own protocol.
    predictions, references = {"x": "a ||| man\nrides", "y": ""}, {"x": ["a man rides"], "y": ["a boat"]}
    assert caption_metrics(predictions, references, metrics=["meteor"])["meteor"] == pytest.approx(expected)


# Tokens


def test_case_punctuation_and_white_space_do_not_count():
    scores = caption_metrics(
        {"x": " a MAN, rides a\tbrown horse ...", "y": "two boats\non a calm lake", "z": "a red bus: in the street?"},
        REFERENCES,
        metrics=["bleu"],
    )
    assert scores["bleu_4"] == pytest.approx(1, abs=1e-6)


@needs_java
def test_both_tokenizers_give_the_same_scores():
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
    # The tokens of about 25 in 10,000 captions differ.
    assert scores[0] == pytest.approx(scores[1], rel=5e-3)
    # Typical agreement between human captions.
    assert 0.5 < scores[0]["cider"] < 1.5


# Domains and invalid arguments


def test_chinese_characters_are_words():
    scores = caption_metrics({1: "一只狗在跑\u3002"}, {1: ["一只狗在沙滩上"]}, metrics=["bleu"])
    # Four of five characters match; five are shorter than seven.
    assert scores["bleu_1"] == pytest.approx(4 / 5 * math.exp(1 - 7 / 5))
    same = caption_metrics({1: "一只狗 , a dog"}, {1: ["一 只 狗\uff0cA dog."]}, metrics=["bleu"])
    assert same["bleu_4"] == pytest.approx(1)


def test_metrics_are_computed_per_domain():
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
def test_invalid_arguments_raise(predictions, references, options, message):
    with pytest.raises(ValueError, match=message):
        caption_metrics(predictions, references, **options)


@needs_java
def test_meteor_is_a_default_metric_if_java_is_installed():
    assert resolve_metrics() == (*WITHOUT_JAVA, "meteor")


def test_without_java_meteor_is_skipped_by_default_and_raises_if_requested(monkeypatch, tmp_path):
    warnings = []
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module.logger, "warning_once", warnings.append)
    assert resolve_metrics() == WITHOUT_JAVA
    assert len(warnings) == 1
    assert "METEOR" in warnings[0]
    for options in ({"metrics": ["meteor"]}, {"metrics": ["spice"]}, {"tokenizer": "ptb"}):
        with pytest.raises(ValueError, match="needs Java, but `java` does not run"):
            resolve_metrics(**options)


@pytest.mark.parametrize("package", ["nltk.tokenize", "pycocoevalcap.tokenizer.ptbtokenizer"])
def test_a_missing_package_raises_with_its_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"need {package.split('.')[0]}.*pip install 'blip_hf\[metrics\]'"):
        caption_metrics({1: "a"}, {1: ["a"]}, metrics=["bleu"])
