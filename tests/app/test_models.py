# SPDX-License-Identifier: BSD-3-Clause
"""Which checkpoints the page loads."""

import pytest

from blip_hf import BlipCaptioner, BlipForImageTextRetrieval, BlipForQuestionAnswering
from blip_hf.app.models import find_checkpoints, load_models
from tests.support.tiny_models import tiny_model_for
from tests.support.vocabularies import make_processor


@pytest.fixture(scope="module")
def vqa_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vqa")
    processor = make_processor()
    tiny_model_for(BlipForQuestionAnswering, processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_the_role_of_a_model_is_that_of_its_class(captioner_folder, matcher_folder, vqa_folder):
    folders = {"captioner": captioner_folder, "matcher": matcher_folder, "vqa": vqa_folder}
    for role, folder in folders.items():
        assert find_checkpoints(str(folder)) == {role: str(folder)}
    found = find_checkpoints(str(captioner_folder), matcher=str(matcher_folder), vqa=str(vqa_folder))
    assert found == {role: str(folder) for role, folder in folders.items()}
    assert find_checkpoints(None) == {}


def test_the_output_of_a_pretraining_gives_two_models(tmp_path, captioner_folder, matcher_folder):
    (tmp_path / "captioner").symlink_to(captioner_folder)
    (tmp_path / "retriever").symlink_to(matcher_folder)
    found = find_checkpoints(str(tmp_path))
    assert found == {"captioner": str(tmp_path / "captioner"), "matcher": str(tmp_path / "retriever")}
    assert find_checkpoints(str(tmp_path), matcher=str(matcher_folder))["matcher"] == str(matcher_folder)
    models = load_models(found, device="cpu")
    assert isinstance(models["captioner"], BlipCaptioner)
    assert isinstance(models["matcher"].model, BlipForImageTextRetrieval)


def test_wrong_checkpoints_are_errors(tmp_path, matcher_folder):
    with pytest.raises(ValueError, match="already the model of --matcher"):
        find_checkpoints(str(matcher_folder), matcher=str(matcher_folder))
    with pytest.raises(ValueError, match="does not exist"):
        find_checkpoints(None, vqa=str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text('{"architectures": ["BlipForVisualReasoning"]}')
    with pytest.raises(ValueError, match="is a BlipForVisualReasoning"):
        find_checkpoints(str(tmp_path))
