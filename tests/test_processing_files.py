# SPDX-License-Identifier: BSD-3-Clause
"""Saving and loading of processors, with this package and with transformers."""

import json
import pickle
from pathlib import Path

import pytest
import torch
import transformers

from blip_hf.caption_settings import CaptionSettings
from blip_hf.image_processing_blip import BlipImageProcessor
from blip_hf.processing_blip import BlipProcessor
from tests.support.processors import (
    DEC,
    ENC,
    SEP,
    WORDS,
    ids_of,
    make_processor,
    make_upstream,
    plain_tokenizer,
    random_photo,
)


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


# ---- Components and options of `from_pretrained`


def test_given_components_replace_the_saved_ones(processor, tmp_path: Path):
    processor.save_pretrained(tmp_path)
    tokenizer = plain_tokenizer()
    tokenizer.add_tokens(["zebra"])
    image_processor = BlipImageProcessor(size={"height": 16, "width": 16})
    loaded = BlipProcessor.from_pretrained(tmp_path, tokenizer=tokenizer, image_processor=image_processor)
    assert loaded.tokenizer is tokenizer
    assert loaded.image_processor is image_processor
    inputs = loaded(random_photo(), "zebra", return_tensors="pt")
    assert inputs.pixel_values.shape == (1, 3, 16, 16)
    assert loaded.decode(inputs.input_ids[0], skip_special_tokens=True) == "zebra"
    settings = CaptionSettings(prompt="a photo of ")
    assert BlipProcessor.from_pretrained(tmp_path, caption_settings=settings).caption_settings == settings


def test_a_component_that_is_given_is_not_read(processor, tmp_path: Path):
    processor.tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = BlipProcessor.from_pretrained(tmp_path / "tokenizer", image_processor=processor.image_processor)
    assert loaded(text="two dogs") == processor(text="two dogs")


def test_a_component_of_another_class_raises(processor, tmp_path: Path):
    processor.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="BertTokenizer for argument image_processor"):
        BlipProcessor.from_pretrained(tmp_path, image_processor=processor.tokenizer)


def test_options_are_taken_by_position_as_in_transformers(processor, tmp_path: Path):
    processor.save_pretrained(tmp_path / "sub")
    loaded = BlipProcessor.from_pretrained(tmp_path, None, False, True, None, "main", subfolder="sub")
    assert loaded(text="two dogs") == processor(text="two dogs")


def test_options_reach_the_tokenizer_and_the_image_processor(processor, tmp_path: Path):
    processor.save_pretrained(tmp_path)
    loaded, unused = BlipProcessor.from_pretrained(
        tmp_path, model_max_length=7, do_resize=False, nonsense=1, return_unused_kwargs=True
    )
    assert loaded.tokenizer.model_max_length == 7
    assert loaded.image_processor.do_resize is False
    assert unused["nonsense"] == 1


# ---- Chat templates

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def ask(image, text):
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]


def test_a_chat_template_is_taken_saved_and_loaded(processor, tmp_path: Path):
    templates = {"default": TEMPLATE, "short": "hi"}
    for number, template in enumerate((TEMPLATE, templates)):
        given = BlipProcessor(processor.image_processor, processor.tokenizer, chat_template=template)
        given.save_pretrained(tmp_path / str(number))
        assert BlipProcessor.from_pretrained(tmp_path / str(number)).chat_template == template
    processor.save_pretrained(tmp_path / "none")
    assert BlipProcessor.from_pretrained(tmp_path / "none").chat_template is None
    assert BlipProcessor.from_pretrained(tmp_path / "none", chat_template=TEMPLATE).chat_template == TEMPLATE


@pytest.mark.parametrize("is_batched", [False, True])
def test_a_conversation_gives_the_inputs_of_its_images_and_texts(processor, is_batched):
    chats = [ask(random_photo(0), "two dogs"), ask(random_photo(1), "a dog on the beach")]
    if is_batched:
        expected = processor([random_photo(0), random_photo(1)], CAPTIONS[::-1], return_tensors="pt")
    else:
        expected = processor(random_photo(0), "two dogs", return_tensors="pt")
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(chats if is_batched else chats[0], chat_template=TEMPLATE, **options)
    processor.chat_template = TEMPLATE
    again = processor.apply_chat_template(chats if is_batched else chats[0], **options)
    for name, value in expected.items():
        assert torch.equal(inputs[name], value)
        assert torch.equal(again[name], value)
