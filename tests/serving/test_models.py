# SPDX-License-Identifier: BSD-3-Clause
"""A checkpoint is loaded for the head that it has."""

import json

import pytest

from blip_hf import BlipForQuestionAnswering, BlipForRetrievalTraining, BlipForVisualReasoning
from blip_hf.serving import ServedModels
from tests.support.tiny_models import tiny_model_for, tiny_nlvr2_config, tiny_retrieval_config
from tests.support.vocabularies import make_processor


def save(model, folder):
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


def heads(models):
    return {name for name in ("captioner", "matcher", "vqa") if getattr(models, name) is not None}


@pytest.fixture(scope="module")
def vqa_folder(tmp_path_factory):
    return save(tiny_model_for(BlipForQuestionAnswering, make_processor()), tmp_path_factory.mktemp("vqa"))


def test_heads_follow_the_checkpoints(captioner_folder, matcher_folder, vqa_folder):
    def load(checkpoint, **others):
        return heads(ServedModels.from_pretrained(checkpoint, device="cpu", **others))

    assert load(captioner_folder) == {"captioner"}
    assert load(matcher_folder) == {"matcher"}
    assert load(vqa_folder) == {"vqa"}
    assert load(captioner_folder, matcher=matcher_folder, vqa=vqa_folder) == {"captioner", "matcher", "vqa"}


def test_a_checkpoint_of_retrieval_training_matches(tmp_path):
    folder = save(BlipForRetrievalTraining(tiny_retrieval_config()), tmp_path)
    assert heads(ServedModels.from_pretrained(folder, device="cpu")) == {"matcher"}


def test_the_data_type_reaches_all_models(captioner_folder, matcher_folder):
    models = ServedModels.from_pretrained(captioner_folder, matcher=matcher_folder, device="cpu", dtype="bfloat16")
    assert str(models.captioner.model.dtype) == str(models.matcher.model.dtype) == "torch.bfloat16"


def test_checkpoints_that_are_not_served_are_refused(tmp_path, matcher_folder):
    folder = save(BlipForVisualReasoning(tiny_nlvr2_config()), tmp_path / "nlvr2")
    with pytest.raises(ValueError, match=r"is a BlipForVisualReasoning\. Pass a checkpoint of"):
        ServedModels.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"is already the matcher of the server\. Leave out --matcher"):
        ServedModels.from_pretrained(matcher_folder, matcher=matcher_folder)
    with pytest.raises(ValueError, match="does not exist"):
        ServedModels.from_pretrained(tmp_path / "nowhere")
    unnamed = tmp_path / "unnamed"
    unnamed.mkdir()
    (unnamed / "config.json").write_text(json.dumps({"model_type": "blip"}))
    with pytest.raises(ValueError, match="is a model without architecture"):
        ServedModels.from_pretrained(unnamed)
