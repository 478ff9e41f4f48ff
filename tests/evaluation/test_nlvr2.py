# SPDX-License-Identifier: BSD-3-Clause
"""NLVR2: accuracy and consistency, and the evaluation of a model."""

import pytest
import torch
from torch.testing import assert_close

from blip_hf import BlipForVisualReasoning, BlipVisualReasoningConfig
from blip_hf.data.nlvr2 import BlipNlvr2Collator, Nlvr2Dataset, Nlvr2TrainTransform
from blip_hf.data.scenes import SceneNlvr2
from blip_hf.evaluation.nlvr2 import evaluate_nlvr2, reasoning_metrics
from tests.support.tiny_models import TEXT, VISION
from tests.support.vocabularies import make_scene_processor


@pytest.fixture(scope="module")
def processor():
    return make_scene_processor()


@pytest.fixture(scope="module")
def model(processor):
    torch.manual_seed(0)
    text_config = {**TEXT, **processor.config_token_ids()}
    return BlipForVisualReasoning(BlipVisualReasoningConfig(text_config=text_config, vision_config=dict(VISION)))


def test_metrics_match_values_computed_by_hand():
    # Sentence a: right, right. b: right, wrong. c: wrong. d: right. Pairs: 4 of 6; sentences: a and d of 4.
    labels = [True, False, True, True, False, False]
    predictions = [True, False, True, False, True, False]
    ids = ["a", "a", "b", "b", "c", "d"]
    assert reasoning_metrics(predictions, labels, ids) == {"accuracy": 4 / 6, "consistency": 2 / 4}
    with pytest.raises(ValueError, match="2 predictions, 1 labels and 1 sentence ids"):
        reasoning_metrics([True, True], [True], ["a"])
    with pytest.raises(ValueError, match="at least one pair"):
        reasoning_metrics([], [], [])


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_evaluation_matches_single_forward_passes(processor, model, batch_size):
    records = [dict(record) for record in SceneNlvr2(7, image_size=32)]
    records[2]["images"] = [records[2]["images"][0], "missing.png"]
    model.train()
    result = evaluate_nlvr2(model, processor, records, batch_size=batch_size)
    assert model.training
    assert (result.num_pairs, result.num_skipped, result.predictions[2]) == (6, 1, None)
    model.eval()
    expected = []
    for number in (0, 1, 3, 4, 5, 6):
        batch = BlipNlvr2Collator(processor)([records[number]])
        with torch.no_grad():
            verdict = model(**batch).logits.argmax().item()
        assert result.predictions[number] == bool(verdict)
        expected.append(verdict == batch["labels"].item())
    assert_close(result.accuracy, sum(expected) / 6)
    assert result.metrics()["num_pairs"] == 6


def test_a_transform_raises(processor, model):
    dataset = Nlvr2Dataset(SceneNlvr2(4), Nlvr2TrainTransform(32))
    with pytest.raises(ValueError, match="has a transform"):
        evaluate_nlvr2(model, processor, dataset)
