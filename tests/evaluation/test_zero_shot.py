# SPDX-License-Identifier: BSD-3-Clause
"""Zero-shot classification: label features, probabilities, and the order of labels."""

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from blip_hf.evaluation.features import image_features, text_features
from blip_hf.evaluation.zero_shot import ZeroShotClassifier, build_label_features, classify
from tests.support.images import noise_images
from tests.support.tiny_models import SUMMATION_TOLERANCE


LABELS = ["a", "b c", "d"]
TEMPLATES = ["{}", "e {} f"]


@pytest.fixture(scope="module")
def images():
    return noise_images(5)


def test_label_features_are_the_normalised_mean_over_templates(model, processor):
    features = build_label_features(model, processor, LABELS, templates=TEMPLATES, batch_size=2)
    for label, feature in zip(LABELS, features, strict=True):
        of_templates = text_features(model, processor, [label, f"e {label} f"])
        assert_close(feature, normalize(of_templates[0] + of_templates[1], dim=0), **SUMMATION_TOLERANCE)


def test_labels_are_normalised_as_captions(model, processor):
    plain = build_label_features(model, processor, ["b c"], templates=["e {} f"])
    assert_close(build_label_features(model, processor, ["B c"], templates=["E {} f."]), plain, rtol=0, atol=0)


def test_probabilities_match_values_computed_by_hand():
    labels = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    # Cosines 1 and 0.6, divided by 0.2: 5 and 3, so 1 / (1 + e^-2) = 0.880797.
    assert_close(classify(labels[:1], labels, temperature=0.2), torch.tensor([[0.880797, 0.119203]]))


def test_the_classifier_gives_the_best_labels_first(model, processor, images):
    classifier = ZeroShotClassifier(model, processor, LABELS, templates=TEMPLATES, temperature=0.1)
    expected = classify(image_features(model, processor, images), classifier.label_features, temperature=0.1)
    results = classifier(images, top_k=2, batch_size=2)
    for row, result in zip(expected.tolist(), results, strict=True):
        order = sorted(range(len(LABELS)), key=lambda label: -row[label])[:2]
        assert [entry.label for entry in result] == [LABELS[label] for label in order]
        assert [entry.probability for entry in result] == pytest.approx([row[label] for label in order], rel=1e-4)
    assert {len(result) for result in classifier(images)} == {len(LABELS)}


def test_probabilities_depend_on_the_image(model, processor, images):
    classifier = ZeroShotClassifier(model, processor, LABELS, temperature=0.01)
    assert len({result[0].probability for result in classifier(images, top_k=1)}) == len(images)


@pytest.mark.parametrize(
    ("labels", "templates", "message"),
    [
        ([], TEMPLATES, "Got 0 labels"),
        (["a", "a"], TEMPLATES, "1 of them different"),
        (["a"], [], "Templates are"),
        (["a"], ["a photo"], "where the label goes"),
    ],
)
def test_unusable_labels_and_templates_raise(model, processor, labels, templates, message):
    with pytest.raises(ValueError, match=message):
        build_label_features(model, processor, labels, templates=templates)


def test_a_temperature_of_zero_raises():
    with pytest.raises(ValueError, match="temperature=0"):
        classify(torch.eye(2), torch.eye(2), temperature=0)
