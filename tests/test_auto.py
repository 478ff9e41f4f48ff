# SPDX-License-Identifier: BSD-3-Clause
"""The Auto classes return the classes of this package only after registration.

Registration is permanent, so it runs in processes of its own.
"""

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForVisualQuestionAnswering
from transformers.models.auto import configuration_auto, modeling_auto
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

import blip_hf
from blip_hf import BlipForQuestionAnswering, BlipForVisualReasoning, auto
from tests.support.forkserver import run_apart
from tests.support.tiny_models import TEXT, tiny_batch, tiny_config, tiny_nlvr2_config
from tests.support.vocabularies import make_processor


@pytest.fixture
def folder(tmp_path):
    """A VQA model with its processor."""
    config = tiny_config()
    config.vision_config.hidden_size = config.text_config.encoder_hidden_size = TEXT["hidden_size"]
    BlipForQuestionAnswering(config).save_pretrained(tmp_path / "vqa")
    make_processor(image_size=32).save_pretrained(tmp_path / "vqa")
    return tmp_path / "vqa"


def register_and_check_tables(folder, nlvr2, theirs):
    """Registers the classes, and returns the names of the tables that have one for BLIP."""
    # Read from the tables of names, which registration does not use.
    tables = {name: table for name, table in vars(modeling_auto).items() if name.startswith("MODEL_")}
    expected = {
        name.removesuffix("_NAMES"): table["blip"]
        for name, table in tables.items()
        if name.endswith("_MAPPING_NAMES") and "blip" in table
    }
    blip_hf.register_auto_classes()
    blip_hf.register_auto_classes()  # may be repeated
    for mapping, name in expected.items():
        for config_class in (blip_hf.BlipConfig, transformers.BlipConfig):
            assert tables[mapping][config_class] is getattr(blip_hf, name), (mapping, config_class)
    for model_type, name in configuration_auto.CONFIG_MAPPING_NAMES.items():
        if configuration_auto.model_type_to_module_name(model_type) == "blip":
            assert transformers.CONFIG_MAPPING[model_type] is getattr(blip_hf, name), name
    assert type(AutoModel.from_pretrained(nlvr2)) is BlipForVisualReasoning

    for checkpoint in (folder, theirs):
        images = transformers.AutoImageProcessor.from_pretrained(checkpoint)
        assert type(images) is blip_hf.BlipImageProcessor, type(images)
        assert images.size["height"] == 32
        assert transformers.AutoTokenizer.from_pretrained(checkpoint).cls_token == "[CLS]"
        assert type(transformers.AutoProcessor.from_pretrained(checkpoint)) is transformers.BlipProcessor
    assert PROCESSOR_MAPPING[blip_hf.BlipConfig] is blip_hf.BlipProcessor
    return sorted(expected)


def test_all_auto_classes_with_a_class_for_blip_are_registered(folder, tmp_path):
    BlipForVisualReasoning(tiny_nlvr2_config()).save_pretrained(tmp_path / "nlvr2")
    image_processor = transformers.BlipImageProcessorPil(size={"height": 32, "width": 32})
    theirs = transformers.BlipProcessor(image_processor, make_processor().tokenizer)
    theirs.save_pretrained(tmp_path / "transformers")
    assert run_apart(register_and_check_tables, folder, tmp_path / "nlvr2", tmp_path / "transformers") == [
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
        "MODEL_FOR_MULTIMODAL_LM_MAPPING",
        "MODEL_FOR_VISUAL_QUESTION_ANSWERING_MAPPING",
        "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING",
        "MODEL_MAPPING",
    ]


def register_and_check_losses(folder):
    batch = tiny_batch(lengths=(6, 6))
    labels = batch["input_ids"][:, :4]
    before = AutoModelForVisualQuestionAnswering.from_pretrained(folder)
    assert type(before).__module__.startswith("transformers."), type(before)
    old_config = AutoConfig.from_pretrained(folder)
    blip_hf.register_auto_classes()
    expected = BlipForQuestionAnswering.from_pretrained(folder)(**batch, labels=labels).loss
    assert not torch.allclose(expected, before(**batch, labels=labels).loss)
    for options in ({}, {"config": old_config}):  # also with a configuration from before
        model = AutoModelForVisualQuestionAnswering.from_pretrained(folder, **options)
        assert type(model) is BlipForQuestionAnswering, type(model)
        assert type(model.config) is blip_hf.BlipConfig
        torch.testing.assert_close(model(**batch, labels=labels).loss, expected)


def test_a_vqa_model_of_auto_reads_questions_with_enc(folder):
    run_apart(register_and_check_losses, folder)


def test_a_model_that_this_package_lacks_is_named(monkeypatch):
    messages = []
    monkeypatch.delitem(auto._MODELS_OF_BOTH, "BlipModel")
    monkeypatch.setattr(auto.logger, "warning", messages.append)
    assert AutoModel not in dict(auto._models_by_auto_class())
    assert messages[0] == "AutoModel still loads transformers.BlipModel: blip_hf has no such class."
