# SPDX-License-Identifier: BSD-3-Clause
"""Saving and loading of processors, with this package and with transformers."""

import json
import pickle
from pathlib import Path

import pytest
import torch
import transformers

from blip_hf.image_processing_blip import BlipImageProcessor
from blip_hf.processing_blip import BlipProcessor
from tests.support.processors import DEC, ENC, SEP, WORDS, ids_of, make_processor, make_upstream, random_photo


CAPTIONS = ["a dog on the beach", "two dogs"]


@pytest.fixture
def processor() -> BlipProcessor:
    return make_processor()


@pytest.fixture
def upstream() -> transformers.BlipProcessor:
    return make_upstream()


def test_a_saved_processor_loads_here_and_in_transformers(processor, tmp_path: Path):
    processor.save_pretrained(tmp_path)
    inputs = processor(random_photo(), "two dogs", return_tensors="pt")
    for loader in (BlipProcessor, transformers.BlipProcessor, transformers.AutoProcessor):
        loaded = loader.from_pretrained(tmp_path)
        again = loaded(random_photo(), "two dogs", return_tensors="pt")
        assert torch.equal(again.pixel_values, inputs.pixel_values)
        assert torch.equal(again.input_ids, inputs.input_ids)
        assert loaded.decode([DEC, *ids_of("two dogs")], skip_special_tokens=True) == "two dogs"
        assert len(loaded.tokenizer) == len(WORDS) + 2
    assert type(loaded) is transformers.BlipProcessor  # AutoProcessor cannot be changed


def save_in_the_old_form(upstream: transformers.BlipProcessor, folder: Path) -> None:
    """The layout of the released checkpoints."""
    upstream.tokenizer.save_pretrained(folder)
    options = {**upstream.image_processor.to_dict(), "image_processor_type": "BlipImageProcessor"}
    options["processor_class"] = "BlipProcessor"
    (folder / "preprocessor_config.json").write_text(json.dumps(options))


@pytest.mark.parametrize("is_old_form", [False, True])
def test_a_processor_of_transformers_loads_here_with_the_role_tokens(upstream, tmp_path: Path, is_old_form: bool):
    if is_old_form:
        save_in_the_old_form(upstream, tmp_path)
    else:
        upstream.save_pretrained(tmp_path)
    loaded = BlipProcessor.from_pretrained(tmp_path)
    assert type(loaded) is BlipProcessor
    assert type(loaded.image_processor) is BlipImageProcessor
    assert (loaded.dec_token_id, loaded.enc_token_id) == (DEC, ENC)
    ours = loaded(random_photo(), "two dogs", return_tensors="pt")
    theirs = upstream(random_photo(), "two dogs", return_tensors="pt")
    assert torch.equal(ours.pixel_values, theirs.pixel_values)
    assert torch.equal(ours.input_ids, theirs.input_ids)
    assert loaded(text="two dogs", role="matching").input_ids == [[ENC, *ids_of("two dogs"), SEP]]


def test_processor_loads_from_a_folder_with_an_unknown_config(processor, tmp_path: Path):
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip_pretraining"}))
    assert BlipProcessor.from_pretrained(tmp_path).dec_token_id == DEC


def test_image_options_can_be_changed_on_loading(processor, tmp_path: Path):
    processor.save_pretrained(tmp_path)
    loaded = BlipProcessor.from_pretrained(tmp_path, size={"height": 16, "width": 16})
    assert loaded(random_photo(), return_tensors="pt").pixel_values.shape == (1, 3, 16, 16)
    assert "size" not in loaded.tokenizer.init_kwargs


@pytest.mark.parametrize("loader", [BlipProcessor, transformers.BlipProcessor])
def test_calls_before_saving_do_not_change_saved_files(processor, tmp_path: Path, loader):
    processor(text=CAPTIONS, role="captioning")
    processor.save_pretrained(tmp_path)
    contents = json.loads((tmp_path / "tokenizer.json").read_text())
    assert (contents["truncation"], contents["padding"]) == (None, None)
    assert len(loader.from_pretrained(tmp_path)(text="a dog " * 50)["input_ids"]) == 102


def test_truncation_saved_in_a_tokenizer_file_is_ignored(processor, upstream, tmp_path: Path):
    upstream(text=CAPTIONS, padding=True, truncation=True, max_length=35)
    upstream.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"]["max_length"] == 35
    assert len(BlipProcessor.from_pretrained(tmp_path)(text="a dog " * 50)["input_ids"]) == 102


def test_pillow_is_the_only_backend(processor, tmp_path: Path):
    processor.save_pretrained(tmp_path)
    assert type(BlipProcessor.from_pretrained(tmp_path, backend="pil").image_processor) is BlipImageProcessor
    with pytest.raises(ValueError, match="backend='torchvision' is not supported"):
        BlipProcessor.from_pretrained(tmp_path, backend="torchvision")


def test_processor_can_be_pickled(processor):
    again = pickle.loads(pickle.dumps(processor))
    assert again(text="a dog", role="lm") == processor(text="a dog", role="lm")


def test_model_input_names_do_not_include_token_types(processor):
    assert set(processor.model_input_names) == {"pixel_values", "input_ids", "attention_mask"}
