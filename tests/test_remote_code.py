# SPDX-License-Identifier: BSD-3-Clause
"""The code beside weights: its modules are complete and flat, and transformers opens them without this package."""

import json
import re

import pytest
import torch

from blip_hf import BlipForPreTraining, BlipForRetrievalTraining, BlipForVisualReasoning
from blip_hf.remote_code import CODE_FOLDER, write_remote_code
from tests.support.processes import run_code
from tests.support.tiny_models import tiny_nlvr2_config, tiny_pretraining_config, tiny_retrieval_config


CONFIGS = {
    BlipForPreTraining: tiny_pretraining_config,
    BlipForRetrievalTraining: tiny_retrieval_config,
    BlipForVisualReasoning: tiny_nlvr2_config,
}
OPEN_WITHOUT_PACKAGE = """
import sys
sys.modules["blip_hf"] = None  # as if it were not installed
import torch
from transformers import AutoModel
for folder in {folders}:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    torch.save(model.state_dict(), folder + "/opened.pt")
    model.save_pretrained(folder + "/again")
    again = AutoModel.from_pretrained(folder + "/again", trust_remote_code=True)
    assert type(again).__name__ == type(model).__name__
"""


def test_classes_that_transformers_lacks_open_without_this_package(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    models = {str(tmp_path / model_class.__name__): model_class(config()) for model_class, config in CONFIGS.items()}
    for folder, model in models.items():
        model.save_pretrained(folder)
        write_remote_code(tmp_path / type(model).__name__, type(model))
    run_code(OPEN_WITHOUT_PACKAGE.format(folders=list(models)))
    for folder, model in models.items():
        opened = torch.load(f"{folder}/opened.pt")
        assert opened.keys() == model.state_dict().keys()
        kept = [name for name in opened if "momentum" not in name and "queue" not in name]
        assert all(torch.equal(opened[name], model.state_dict()[name]) for name in kept)


@pytest.mark.parametrize("model_class", CONFIGS)
def test_modules_import_only_their_neighbours(model_class, tmp_path):
    CONFIGS[model_class]().save_pretrained(tmp_path)
    paths = write_remote_code(tmp_path, model_class)
    neighbours = {path.stem for path in paths}
    assert {path.parent.name for path in paths} == {CODE_FOLDER}
    for path in paths:
        imports = re.findall(r"^\s*from (\.+[\w.]*) import", path.read_text(), re.MULTILINE)
        assert {name.removeprefix(".") for name in imports} <= neighbours, path


def test_a_registered_class_saves_its_code(tmp_path, monkeypatch):
    monkeypatch.setattr(BlipForVisualReasoning, "_remote_auto_class", None)
    model = BlipForVisualReasoning(tiny_nlvr2_config())
    model.save_pretrained(tmp_path / "plain")
    BlipForVisualReasoning.register_for_auto_class()
    model.save_pretrained(tmp_path / "registered")
    assert not (tmp_path / "plain" / CODE_FOLDER).exists()
    auto_map = json.loads((tmp_path / "registered" / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "remote_code/configuration_blip.BlipVisualReasoningConfig",
        "AutoModel": "remote_code/modeling_nlvr2.BlipForVisualReasoning",
    }
    assert BlipForVisualReasoning.from_pretrained(tmp_path / "registered").config.merge_from_layer == 1
